"""S3D: Inception blocks whose 3-D convolutions are split into space, then time.

Xie et al., "Rethinking Spatiotemporal Feature Learning", ECCV 2018. Parameter names are
torchvision's.
"""

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn
from torchvision.models.video.s3d import SepInceptionBlock3D, TemporalSeparableConv
from torchvision.ops.misc import Conv3dNormActivation

from vidcsl.models.encoder import ENCODERS, Encoder, flat
from vidcsl.models.planar import planar

WIDTH = 64  # channels of the published stem

# Channels of the blocks' branches: b0, b1 inner, b1, b2 inner, b2, b3.
BLOCKS = {
    "3": ((64, 96, 128, 16, 32, 32), (128, 128, 192, 32, 96, 64)),
    "4": (
        (192, 96, 208, 16, 48, 64),
        (160, 112, 224, 24, 64, 64),
        (128, 128, 256, 24, 64, 64),
        (112, 144, 288, 32, 64, 64),
        (256, 160, 320, 32, 128, 128),
    ),
    "5": ((256, 160, 320, 32, 128, 128), (384, 192, 384, 48, 128, 128)),
}
OUTPUTS = (0, 2, 4, 5)  # columns of `BLOCKS` that are concatenated; the others are inner


class HalvingPool(nn.Module):
    """torchvision's 2 x 2 x 2 max pooling, which keeps an axis of length 1.

    torchvision's fails on clips so short or small that one frame, row or column is left.
    """

    def forward(self, maps: Tensor) -> Tensor:
        """Maps `[N, C, T, H, W]` of half the length of each axis."""
        return nn.functional.max_pool3d(maps, [min(2, size) for size in maps.shape[2:]])


class S3D(nn.Module):
    """The network without its classifier.

    Args:
        width: channels of the stem; all others scale with it.
    """

    def __init__(self, *, width: int) -> None:
        super().__init__()
        norm = partial(nn.BatchNorm3d, eps=0.001)

        def size(channels: int) -> int:
            return max(1, round(channels * width / WIDTH))

        self.features = nn.Sequential(
            TemporalSeparableConv(3, size(64), 7, 2, 3, norm),
            nn.MaxPool3d((1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1)),
            Conv3dNormActivation(size(64), size(64), kernel_size=1, stride=1, norm_layer=norm),
            TemporalSeparableConv(size(64), size(192), 3, 1, 1, norm),
            nn.MaxPool3d((1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1)),
            *_inception(192, "3", size, norm),
            nn.MaxPool3d((3, 3, 3), stride=(2, 2, 2), padding=(1, 1, 1)),
            *_inception(480, "4", size, norm),
            HalvingPool(),
            *_inception(832, "5", size, norm),
        )
        self.feature_dim = sum(size(BLOCKS["5"][-1][branch]) for branch in OUTPUTS)

    def tokens(self, clips: Tensor) -> Tensor:
        """One vector per place, `[N, L, 16 * width]`."""
        return flat(self.features(clips))

    def forward(self, clips: Tensor) -> Tensor:
        """Features `[N, 16 * width]` of normalised clips `[N, 3, T, H, W]`."""
        features: Tensor = self.features(clips).mean(dim=(2, 3, 4))
        return features


@ENCODERS.register("s3d", "S3D")
def s3d(*, clip_frames: int, frame_size: int, width: int = 0) -> Encoder:
    """S3D; `width` below 64 gives a slim network."""
    backbone = S3D(width=width or WIDTH)
    return Encoder(
        planar(backbone),
        feature_dim=backbone.feature_dim,
        clip_frames=clip_frames,
        frame_size=frame_size,
    )


def _inception(
    inplanes: int, stage: str, size: Callable[[int], int], norm: Callable[..., nn.Module]
) -> list[nn.Module]:
    blocks: list[nn.Module] = []
    before = size(inplanes) if stage == "3" else _joined(chr(ord(stage) - 1), -1, size)
    for number, branches in enumerate(BLOCKS[stage]):
        blocks.append(SepInceptionBlock3D(before, *map(size, branches), norm))
        before = _joined(stage, number, size)
    return blocks


def _joined(stage: str, number: int, size: Callable[[int], int]) -> int:
    """Output channels of a block."""
    return sum(size(BLOCKS[stage][number][branch]) for branch in OUTPUTS)
