"""R(2+1)D, R3D and MC3: residual networks of 3-D convolutions.

Tran et al., "A Closer Look at Spatiotemporal Convolutions for Action Recognition", CVPR 2018.
R(2+1)D splits each convolution into space, then time; MC3 has full 3-D convolutions in its first
stage only. Parameter names are torchvision's, so its weights and those of their many descendants
load.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import Tensor, nn
from torchvision.models.video.resnet import BasicBlock, Conv2Plus1D, Conv3DNoTemporal, Conv3DSimple

from vidcsl.models.encoder import ENCODERS, Encoder, flat, shallow
from vidcsl.models.planar import planar

WIDTH = 64  # channels of the published first stage
STRIDES = ((1, 1), (2, 2), (2, 2), (2, 2))  # (time, space) of each stage
STEM_RATIO = 45 / 64  # middle channels of R(2+1)D's published stem over its output channels

ConvMaker = Callable[..., nn.Module]
"""`(in_planes, out_planes, midplanes, stride=1, padding=1) -> convolution`, as torchvision's."""

Shortcut = Callable[[int, int, tuple[int, int, int]], nn.Module]
"""`(inplanes, planes, stride) -> 1 x 1 convolution with its BatchNorm`."""


class VideoResNet(nn.Module):
    """A stem and four stages of basic blocks, without the classifier.

    Args:
        stem: `[N, 3, T, H, W]` -> maps of `width` channels.
        convs: maker of the convolutions of each stage.
        blocks: residual blocks of each stage.
        width: channels of the first stage, doubled by each later one.
        strides: (time, space) of the first block of each stage.
        shortcut: makes the shortcut of blocks that change the size of their maps; None: one
            1 x 1 x 1 convolution.
    """

    def __init__(
        self,
        *,
        stem: nn.Module,
        convs: Sequence[ConvMaker],
        blocks: Sequence[int],
        width: int,
        strides: Sequence[tuple[int, int]],
        shortcut: Shortcut | None = None,
    ) -> None:
        super().__init__()
        self.stem = stem
        widths = [width, width, 2 * width, 4 * width, 8 * width]  # the stem's, then the stages'
        settings = zip(pairwise(widths), convs, blocks, strides, strict=True)
        for number, ((before, after), conv, depth, (time, space)) in enumerate(settings, start=1):
            downsample: nn.Module | None = None
            if (time, space) != (1, 1) or before != after:
                stride = (time, space, space)
                if shortcut is not None:
                    downsample = shortcut(before, after, stride)
                else:
                    downsample = nn.Sequential(
                        nn.Conv3d(before, after, 1, stride=stride, bias=False),
                        nn.BatchNorm3d(after),
                    )
            first = BasicBlock(before, after, conv, space, downsample)
            later = (BasicBlock(after, after, conv) for _ in range(depth - 1))
            setattr(self, f"layer{number}", nn.Sequential(first, *later))
        self.feature_dim = widths[-1]
        # He's initialisation, and each residual block starts as its shortcut (Goyal et al., 2017).
        # Otherwise a new network is so steep that contrastive losses hardly fall: its gradient norm
        # is 500 rather than 20.
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, BasicBlock):
                nn.init.zeros_(module.conv2[1].weight)

    def maps(self, clips: Tensor) -> Tensor:
        """Maps `[N, 8 * width, T', H', W']` of normalised clips `[N, 3, T, H, W]`."""
        maps: Tensor = self.stem(clips)
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            maps = stage(maps)  # type: ignore[operator]
        return maps

    def tokens(self, clips: Tensor) -> Tensor:
        """One vector per place, `[N, T' * H' * W', 8 * width]`."""
        return flat(self.maps(clips))

    def forward(self, clips: Tensor) -> Tensor:
        """Features `[N, 8 * width]`."""
        return self.maps(clips).mean(dim=(2, 3, 4))


def as_encoder(
    backbone: VideoResNet, *, clip_frames: int, frame_size: int, normalisation: str = "kinetics"
) -> Encoder:
    """Wrap the network, with its convolutions as fast as they can be."""
    return Encoder(
        planar(backbone),
        feature_dim=backbone.feature_dim,
        clip_frames=clip_frames,
        frame_size=frame_size,
        normalisation=normalisation,
    )


@ENCODERS.register("r2plus1d_18", "R(2+1)D-18")
def r2plus1d_18(*, clip_frames: int, frame_size: int, width: int = 0, depth: int = 0) -> Encoder:
    """R(2+1)D-18; `width` below 64 or `depth` below 2 give a slim network."""
    return _r2plus1d((2, 2, 2, 2), clip_frames, frame_size, width, depth)


@ENCODERS.register("r2plus1d_34", "R(2+1)D-34")
def r2plus1d_34(*, clip_frames: int, frame_size: int, width: int = 0, depth: int = 0) -> Encoder:
    """R(2+1)D-34; `width` below 64 or `depth` below 6 give a slim network."""
    return _r2plus1d((3, 4, 6, 3), clip_frames, frame_size, width, depth)


@ENCODERS.register("r2plus1d_34_mmaction2", "R(2+1)D-34 as in mmaction2")
def r2plus1d_34_mmaction2(
    *, clip_frames: int, frame_size: int, width: int = 0, depth: int = 0
) -> Encoder:
    """R(2+1)D-34 of mmaction2, which differs from torchvision's.

    It pools after the stem, splits the shortcuts too, and computes the middle channels for each
    convolution, not for each block (23 in the stem).
    """
    width = width or WIDTH
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


def _r2plus1d(
    blocks: tuple[int, ...], clip_frames: int, frame_size: int, width: int, depth: int
) -> Encoder:
    width = width or WIDTH
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
    """Middle channels for as many parameters as a full convolution, 3 frames by `area` pixels."""
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
    """torchvision's; the weights over time are drawn twice, as ever, so that seeds keep meaning."""

    def __init__(
        self, in_planes: int, out_planes: int, midplanes: int, stride: int = 1, padding: int = 1
    ) -> None:
        super().__init__(in_planes, out_planes, midplanes, stride, padding)
        self[3].reset_parameters()


class _OwnMiddle(_Conv2Plus1D):
    def __init__(
        self, in_planes: int, out_planes: int, midplanes: int, stride: int = 1, padding: int = 1
    ) -> None:
        del midplanes  # torchvision's number for the whole block
        own = _middle(in_planes, out_planes, area=9)
        super().__init__(in_planes, out_planes, own, stride, padding)


@ENCODERS.register("r3d_18", "R3D-18")
def r3d_18(*, clip_frames: int, frame_size: int, width: int = 0, depth: int = 0) -> Encoder:
    """R3D-18; `width` below 64 or `depth` below 2 give a slim network."""
    convs = (Conv3DSimple,) * 4
    backbone = _full_network(convs, STRIDES, width=width, depth=depth)
    return as_encoder(backbone, clip_frames=clip_frames, frame_size=frame_size)


@ENCODERS.register("mc3_18", "MC3-18")
def mc3_18(*, clip_frames: int, frame_size: int, width: int = 0, depth: int = 0) -> Encoder:
    """MC3-18: after the first stage, convolutions cover space only and keep all frames."""
    convs = (Conv3DSimple, *(Conv3DNoTemporal,) * 3)
    strides = ((1, 1), (1, 2), (1, 2), (1, 2))
    backbone = _full_network(convs, strides, width=width, depth=depth)
    return as_encoder(backbone, clip_frames=clip_frames, frame_size=frame_size)


@ENCODERS.register("r3d_18_tclr", "R3D-18 as in TCLR")
def r3d_18_tclr(*, clip_frames: int, frame_size: int, width: int = 0, depth: int = 0) -> Encoder:
    """R3D-18 of TCLR: the last stage dilates its first convolution in time and keeps all frames.

    Dave et al., "TCLR: Temporal Contrastive Learning for Video Representation", CVIU 2022. Pixels
    are not normalised.
    """
    convs = (Conv3DSimple,) * 4
    strides = (*STRIDES[:3], (1, 2))
    backbone = _full_network(convs, strides, width=width, depth=depth)
    first = backbone.layer4[0].conv1[0]  # type: ignore[index,union-attr]
    assert isinstance(first, nn.Conv3d)
    first.stride, first.padding, first.dilation = (1, 2, 2), (2, 1, 1), (2, 1, 1)
    return as_encoder(
        backbone, clip_frames=clip_frames, frame_size=frame_size, normalisation="none"
    )


def _full_network(
    convs: Sequence[ConvMaker], strides: Sequence[tuple[int, int]], *, width: int, depth: int
) -> VideoResNet:
    width = width or WIDTH
    return VideoResNet(
        stem=nn.Sequential(
            nn.Conv3d(3, width, (3, 7, 7), stride=(1, 2, 2), padding=(1, 3, 3), bias=False),
            nn.BatchNorm3d(width),
            nn.ReLU(inplace=True),
        ),
        convs=convs,
        blocks=shallow((2, 2, 2, 2), depth),
        width=width,
        strides=strides,
    )
