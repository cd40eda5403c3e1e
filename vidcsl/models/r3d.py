"""R3D-18 and MC3-18: residual networks of full 3-D convolutions, in all stages or in the first.

Tran et al., "A Closer Look at Spatiotemporal Convolutions for Action Recognition", CVPR 2018.
"""

from collections.abc import Sequence

from torch import nn
from torchvision.models.video.resnet import Conv3DNoTemporal, Conv3DSimple

from vidcsl.models.encoder import Encoder, published_or, shallow
from vidcsl.models.video_resnet import ConvMaker, VideoResNet, as_encoder, basic_stem

WIDTH = 64  # of the published networks
BLOCKS = (2, 2, 2, 2)
IN_TIME_AND_SPACE = ((1, 1), (2, 2), (2, 2), (2, 2))


def r3d_18(*, clip_frames: int, frame_size: int, width: int = 0, depth: int = 0) -> Encoder:
    """R3D-18; `width` below 64 or `depth` below 2 give a slim network."""
    convs = (Conv3DSimple,) * 4
    backbone = _build(convs, IN_TIME_AND_SPACE, width=width, depth=depth)
    return as_encoder(backbone, clip_frames=clip_frames, frame_size=frame_size)


def mc3_18(*, clip_frames: int, frame_size: int, width: int = 0, depth: int = 0) -> Encoder:
    """MC3-18: after the first stage convolutions are of space alone, and time is kept whole."""
    convs = (Conv3DSimple, *(Conv3DNoTemporal,) * 3)
    strides = ((1, 1), (1, 2), (1, 2), (1, 2))
    backbone = _build(convs, strides, width=width, depth=depth)
    return as_encoder(backbone, clip_frames=clip_frames, frame_size=frame_size)


def r3d_18_tclr(*, clip_frames: int, frame_size: int, width: int = 0, depth: int = 0) -> Encoder:
    """R3D-18 as TCLR trains it: the last stage dilates in time where others halve it.

    Dave et al., "TCLR: Temporal Contrastive Learning for Video Representation", CVIU 2022. Pixels
    are not normalised.
    """
    convs = (Conv3DSimple,) * 4
    strides = (*IN_TIME_AND_SPACE[:3], (1, 2))
    backbone = _build(convs, strides, width=width, depth=depth)
    first = backbone.layer4[0].conv1[0]  # type: ignore[index,union-attr]
    assert isinstance(first, nn.Conv3d)
    first.stride, first.padding, first.dilation = (1, 2, 2), (2, 1, 1), (2, 1, 1)
    return as_encoder(
        backbone, clip_frames=clip_frames, frame_size=frame_size, normalisation="none"
    )


def _build(
    convs: Sequence[ConvMaker], strides: Sequence[tuple[int, int]], *, width: int, depth: int
) -> VideoResNet:
    width = published_or(width, WIDTH)
    return VideoResNet(
        stem=basic_stem(width),
        convs=convs,
        blocks=shallow(BLOCKS, depth),
        width=width,
        strides=strides,
    )
