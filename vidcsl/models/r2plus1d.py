"""R(2+1)D: residual networks whose 3-D convolutions are split into space, then time.

Tran et al., "A Closer Look at Spatiotemporal Convolutions for Action Recognition", CVPR 2018.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.video.resnet import Conv2Plus1D

from vidcsl.models.encoder import Encoder, published_or, shallow
from vidcsl.models.video_resnet import VideoResNet, as_encoder

WIDTH = 64  # of the published networks
STEM_RATIO = 45 / 64  # middle channels of the published stem over its output channels
STRIDES = ((1, 1), (2, 2), (2, 2), (2, 2))


def r2plus1d_18(*, clip_frames: int, frame_size: int, width: int = 0, depth: int = 0) -> Encoder:
    """R(2+1)D-18; `width` below 64 or `depth` below 2 give a slim network."""
    return _build((2, 2, 2, 2), clip_frames, frame_size, width, depth)


def r2plus1d_34(*, clip_frames: int, frame_size: int, width: int = 0, depth: int = 0) -> Encoder:
    """R(2+1)D-34; `width` below 64 or `depth` below 6 give a slim network."""
    return _build((3, 4, 6, 3), clip_frames, frame_size, width, depth)


def r2plus1d_34_mmaction2(
    *, clip_frames: int, frame_size: int, width: int = 0, depth: int = 0
) -> Encoder:
    """R(2+1)D-34 as mmaction2 builds it, another network than torchvision's.

    It pools after its stem, splits its shortcuts too, and counts the middle channels of every
    convolution by itself (23 of them in the stem).
    """
    width = published_or(width, WIDTH)
    backbone = VideoResNet(
        stem=nn.Sequential(
            *_stem(width, middle=_middle(3, width, area=9)),
            nn.MaxPool3d((1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1)),
        ),
        convs=(_OwnMiddle,) * 4,
        blocks=shallow((3, 4, 6, 3), depth),
        width=width,
        strides=STRIDES,
        shortcut=_split_shortcut,
    )
    return as_encoder(
        backbone, clip_frames=clip_frames, frame_size=frame_size, normalisation="imagenet"
    )


def _build(
    blocks: tuple[int, ...], clip_frames: int, frame_size: int, width: int, depth: int
) -> Encoder:
    width = published_or(width, WIDTH)
    backbone = VideoResNet(
        stem=_stem(width, middle=max(1, round(width * STEM_RATIO))),
        convs=(_Conv2Plus1D,) * 4,
        blocks=shallow(blocks, depth),
        width=width,
        strides=STRIDES,
    )
    return as_encoder(backbone, clip_frames=clip_frames, frame_size=frame_size)


def _stem(width: int, *, middle: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv3d(3, middle, (1, 7, 7), stride=(1, 2, 2), padding=(0, 3, 3), bias=False),
        nn.BatchNorm3d(middle),
        nn.ReLU(inplace=True),
        nn.Conv3d(middle, width, (3, 1, 1), padding=(1, 0, 0), bias=False),
        nn.BatchNorm3d(width),
        nn.ReLU(inplace=True),
    )


def _middle(inplanes: int, planes: int, *, area: int) -> int:
    """Middle channels that keep the parameters of a full convolution, 3 deep and `area` wide."""
    return max(1, 3 * inplanes * planes * area // (inplanes * area + 3 * planes))


def _split_shortcut(inplanes: int, planes: int, stride: tuple[int, int, int]) -> nn.Sequential:
    middle = _middle(inplanes, planes, area=1)
    time, space, _ = stride
    split = nn.Sequential(
        nn.Conv3d(inplanes, middle, 1, stride=(1, space, space), bias=False),
        nn.BatchNorm3d(middle),
        nn.ReLU(inplace=True),
        nn.Conv3d(middle, planes, 1, stride=(time, 1, 1), bias=False),
    )
    return nn.Sequential(split, nn.BatchNorm3d(planes))


class _Conv2Plus1D(Conv2Plus1D):
    def __init__(
        self, in_planes: int, out_planes: int, midplanes: int, stride: int = 1, padding: int = 1
    ) -> None:
        super().__init__(in_planes, out_planes, midplanes, stride, padding)
        self[3] = _TemporalConv(
            *(midplanes, out_planes, (3, 1, 1)),
            stride=(stride, 1, 1),
            padding=(padding, 0, 0),
            bias=False,
        )


class _OwnMiddle(_Conv2Plus1D):
    def __init__(
        self, in_planes: int, out_planes: int, midplanes: int, stride: int = 1, padding: int = 1
    ) -> None:
        del midplanes  # torchvision counts them once a block
        own = _middle(in_planes, out_planes, area=9)
        super().__init__(in_planes, out_planes, own, stride, padding)


class _TemporalConv(nn.Conv3d):
    """A temporal convolution that is safe on two frames.

    On CPUs with bfloat16 instructions, the weight gradient of torch's bfloat16 kernel with
    implicit padding reads uninitialised memory when there are exactly two frames (seen with torch
    2.14): it is random, at times infinite. Padding by hand selects another kernel.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Maps `[N, C, T, H, W]` of the input, convolved over T."""
        half = input.dtype == torch.bfloat16 or torch.is_autocast_enabled("cpu")
        if input.device.type != "cpu" or input.shape[2] != 2 or not half:
            return super().forward(input)
        before_and_after = int(self.padding[0])
        padded = F.pad(input, (0, 0, 0, 0, before_and_after, before_and_after))
        return F.conv3d(padded, self.weight, self.bias, self.stride)
