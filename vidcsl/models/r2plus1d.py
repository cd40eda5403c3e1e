"""R(2+1)D: residual networks whose 3-D convolutions are split into space, then time.

Tran et al., "A Closer Look at Spatiotemporal Convolutions for Action Recognition", CVPR 2018.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.video.resnet import BasicBlock, Conv2Plus1D

from vidcsl.models.encoder import Encoder

STEM_RATIO = 45 / 64  # middle channels of the published stem over its output channels


class R2Plus1D(nn.Module):
    """The network without its classifier; parameter names are torchvision's.

    Args:
        blocks: residual blocks of the four stages.
        width: channels of the first stage, doubled by each later one. At 64 this is
            torchvision's `r2plus1d_18` (with blocks 2, 2, 2, 2) and loads its weights.
    """

    def __init__(self, *, blocks: tuple[int, int, int, int], width: int = 64) -> None:
        super().__init__()
        self.stem = _stem(width)
        widths = [width, width, 2 * width, 4 * width, 8 * width]  # the stem's, then the stages'
        self.layer1, self.layer2, self.layer3, self.layer4 = (
            _stage(before, after, depth=depth, stride=1 if before == after else 2)
            for (before, after), depth in zip(pairwise(widths), blocks, strict=True)
        )
        self.feature_dim = widths[-1]
        _initialise(self)

    def forward(self, clips: Tensor) -> Tensor:
        """Features `[N, 8 * width]` of normalised clips `[N, 3, T, H, W]`."""
        maps = self.stem(clips)
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            maps = stage(maps)  # [N, C, T, H, W]
        return maps.mean(dim=(2, 3, 4))


def r2plus1d_18(*, clip_frames: int, frame_size: int, width: int = 64) -> Encoder:
    """R(2+1)D-18; `width` below 64 gives a slim network of the same structure."""
    return _encoder((2, 2, 2, 2), clip_frames=clip_frames, frame_size=frame_size, width=width)


def r2plus1d_34(*, clip_frames: int, frame_size: int, width: int = 64) -> Encoder:
    """R(2+1)D-34; `width` below 64 gives a slim network of the same structure."""
    return _encoder((3, 4, 6, 3), clip_frames=clip_frames, frame_size=frame_size, width=width)


def _encoder(
    blocks: tuple[int, int, int, int], *, clip_frames: int, frame_size: int, width: int
) -> Encoder:
    backbone = R2Plus1D(blocks=blocks, width=width)
    # Channels last is the faster layout of 3-D convolutions, on CPU and GPU.
    backbone = backbone.to(memory_format=torch.channels_last_3d)
    return Encoder(
        backbone,
        feature_dim=backbone.feature_dim,
        clip_frames=clip_frames,
        frame_size=frame_size,
    )


def _stem(width: int) -> nn.Sequential:
    middle = max(1, round(width * STEM_RATIO))
    return nn.Sequential(
        nn.Conv3d(3, middle, (1, 7, 7), stride=(1, 2, 2), padding=(0, 3, 3), bias=False),
        nn.BatchNorm3d(middle),
        nn.ReLU(inplace=True),
        nn.Conv3d(middle, width, (3, 1, 1), padding=(1, 0, 0), bias=False),
        nn.BatchNorm3d(width),
        nn.ReLU(inplace=True),
    )


def _stage(inplanes: int, planes: int, *, depth: int, stride: int) -> nn.Sequential:
    first = _block(inplanes, planes, stride=stride)
    return nn.Sequential(first, *(_block(planes, planes, stride=1) for _ in range(depth - 1)))


def _block(inplanes: int, planes: int, *, stride: int) -> BasicBlock:
    shortcut = None
    if stride != 1 or inplanes != planes:
        shortcut = nn.Sequential(
            nn.Conv3d(inplanes, planes, 1, stride=stride, bias=False), nn.BatchNorm3d(planes)
        )
    return BasicBlock(inplanes, planes, _Conv2Plus1D, stride, shortcut)


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


class _TemporalConv(nn.Conv3d):
    """A temporal convolution that is safe on two frames.

    On CPUs with bfloat16 instructions, the weight gradient of torch's bfloat16 kernel with
    implicit padding reads uninitialised memory when there are exactly two frames (seen with torch
    2.14): it is random, at times infinite. Padding by hand selects another kernel.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Maps `[N, C, T, H, W]` of the input, convolved over T."""
        if input.device.type != "cpu" or input.shape[2] != 2:
            return super().forward(input)
        before_and_after = int(self.padding[0])
        padded = F.pad(input, (0, 0, 0, 0, before_and_after, before_and_after))
        return F.conv3d(padded, self.weight, self.bias, self.stride)


def _initialise(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.Conv3d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, BasicBlock):
            # Each block starts as its shortcut (Goyal et al., 2017). Otherwise a fresh network is
            # so steep that contrastive losses hardly fall: gradient norms of 500, not of 20.
            nn.init.zeros_(module.conv2[1].weight)
