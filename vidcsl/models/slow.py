"""Slow-R50: the slow pathway of SlowFast, the usual encoder of MoCo and BYOL on video.

Feichtenhofer et al., "SlowFast Networks for Video Recognition", ICCV 2019, and "A Large-Scale Study
on Unsupervised Spatiotemporal Representation Learning", CVPR 2021.
"""

from itertools import pairwise

from torch import Tensor, nn

from vidcsl.models.encoder import ENCODERS, Encoder, flat, shallow
from vidcsl.models.planar import planar

WIDTH = 64  # channels of the published stem
EXPANSION = 4  # channels that leave a block, for each one inside
KERNELS = (1, 1, 3, 3)  # temporal extent of the first convolution of the blocks of each stage


class Bottleneck(nn.Module):
    """1 x 1 convolutions around a 3 x 3 one in space; the first one may extend over time."""

    def __init__(self, inplanes: int, planes: int, *, kernel: int, stride: int) -> None:
        super().__init__()
        outplanes = EXPANSION * planes
        over_time = (kernel // 2, 0, 0)
        self.conv1 = nn.Conv3d(inplanes, planes, (kernel, 1, 1), padding=over_time, bias=False)
        self.bn1 = nn.BatchNorm3d(planes)
        self.conv2 = nn.Conv3d(
            *(planes, planes, (1, 3, 3)), stride=(1, stride, stride), padding=(0, 1, 1), bias=False
        )
        self.bn2 = nn.BatchNorm3d(planes)
        self.conv3 = nn.Conv3d(planes, outplanes, 1, bias=False)
        self.bn3 = nn.BatchNorm3d(outplanes)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or inplanes != outplanes:
            self.downsample = nn.Sequential(
                nn.Conv3d(inplanes, outplanes, 1, stride=(1, stride, stride), bias=False),
                nn.BatchNorm3d(outplanes),
            )

    def forward(self, maps: Tensor) -> Tensor:
        """Maps with `4 * planes` channels."""
        shortcut = maps if self.downsample is None else self.downsample(maps)
        inner = self.relu(self.bn1(self.conv1(maps)))
        inner = self.relu(self.bn2(self.conv2(inner)))
        added: Tensor = self.relu(self.bn3(self.conv3(inner)) + shortcut)
        return added


class SlowResNet(nn.Module):
    """The network without its head; time is never strided.

    Args:
        blocks: residual blocks of each of the four stages.
        width: channels of the stem.
    """

    def __init__(self, *, blocks: tuple[int, ...], width: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv3d(3, width, (1, 7, 7), stride=(1, 2, 2), padding=(0, 3, 3), bias=False),
            nn.BatchNorm3d(width),
            nn.ReLU(inplace=True),
            nn.MaxPool3d((1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1)),
        )
        planes = [width, 2 * width, 4 * width, 8 * width]
        widths = [width, *(EXPANSION * each for each in planes)]
        stages = zip(blocks, pairwise(widths), planes, KERNELS, strict=True)
        for number, (depth, (before, after), inner, kernel) in enumerate(stages, start=1):
            stride = 1 if number == 1 else 2
            first = Bottleneck(before, inner, kernel=kernel, stride=stride)
            later = (Bottleneck(after, inner, kernel=kernel, stride=1) for _ in range(depth - 1))
            setattr(self, f"layer{number}", nn.Sequential(first, *later))
        self.feature_dim = widths[-1]
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, Bottleneck):
                nn.init.zeros_(module.bn3.weight)  # each block starts as its shortcut

    def tokens(self, clips: Tensor) -> Tensor:
        """One vector per place, `[N, L, 32 * width]`."""
        return flat(self._maps(clips))

    def forward(self, clips: Tensor) -> Tensor:
        """Features `[N, 32 * width]` of normalised clips `[N, 3, T, H, W]`."""
        return self._maps(clips).mean(dim=(2, 3, 4))

    def _maps(self, clips: Tensor) -> Tensor:
        maps: Tensor = self.stem(clips)
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            maps = stage(maps)  # type: ignore[operator]
        return maps


@ENCODERS.register("slow_r50", "Slow-R50")
def slow_r50(*, clip_frames: int, frame_size: int, width: int = 0, depth: int = 0) -> Encoder:
    """Slow-R50; `width` below 64 or `depth` below 6 give a slim network."""
    blocks = shallow((3, 4, 6, 3), depth)
    backbone = SlowResNet(blocks=blocks, width=width or WIDTH)
    return Encoder(
        planar(backbone),
        feature_dim=backbone.feature_dim,
        clip_frames=clip_frames,
        frame_size=frame_size,
        normalisation="pyslowfast",
    )
