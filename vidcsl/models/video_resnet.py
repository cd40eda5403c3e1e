"""Residual networks of 3-D convolutions: what R(2+1)D, R3D and MC3 share.

Parameter names are torchvision's, so that its weights and those of its many descendants fit.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torchvision.models.video.resnet import BasicBlock, Conv3DSimple

from vidcsl.models.encoder import Encoder, flat

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
        shortcut: of blocks that change the size of their maps.
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
            downsample = None
            if (time, space) != (1, 1) or before != after:
                downsample = (shortcut or plain_shortcut)(before, after, (time, space, space))
            first = BasicBlock(before, after, conv, space, downsample)
            later = (BasicBlock(after, after, conv) for _ in range(depth - 1))
            setattr(self, f"layer{number}", nn.Sequential(first, *later))
        self.feature_dim = widths[-1]
        initialise(self)

    def maps(self, clips: Tensor) -> Tensor:
        """Maps `[N, 8 * width, T', H', W']` of normalised clips `[N, 3, T, H, W]`."""
        maps: Tensor = self.stem(clips)
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            maps = stage(maps)  # type: ignore[operator]
        return maps

    def tokens(self, clips: Tensor) -> Tensor:
        """A vector a place, `[N, T' * H' * W', 8 * width]`."""
        return flat(self.maps(clips))

    def forward(self, clips: Tensor) -> Tensor:
        """Features `[N, 8 * width]`."""
        return self.maps(clips).mean(dim=(2, 3, 4))


def as_encoder(
    backbone: VideoResNet, *, clip_frames: int, frame_size: int, normalisation: str = "kinetics"
) -> Encoder:
    """The network behind the contract, its weights in the layout that convolves fastest."""
    return Encoder(
        backbone.to(memory_format=torch.channels_last_3d),
        feature_dim=backbone.feature_dim,
        clip_frames=clip_frames,
        frame_size=frame_size,
        normalisation=normalisation,
    )


def basic_stem(width: int) -> nn.Sequential:
    """A 3 x 7 x 7 convolution of stride 2 in space."""
    return nn.Sequential(
        nn.Conv3d(3, width, (3, 7, 7), stride=(1, 2, 2), padding=(1, 3, 3), bias=False),
        nn.BatchNorm3d(width),
        nn.ReLU(inplace=True),
    )


def plain_shortcut(inplanes: int, planes: int, stride: tuple[int, int, int]) -> nn.Sequential:
    """One 1 x 1 x 1 convolution."""
    return nn.Sequential(
        nn.Conv3d(inplanes, planes, 1, stride=stride, bias=False), nn.BatchNorm3d(planes)
    )


def initialise(network: nn.Module) -> None:
    """He's initialisation; each residual block starts as its shortcut (Goyal et al., 2017).

    Otherwise a fresh network is so steep that contrastive losses hardly fall: gradient norms of
    500, not of 20.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv3d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, BasicBlock):
            nn.init.zeros_(module.conv2[1].weight)


__all__ = ["Conv3DSimple", "VideoResNet", "as_encoder", "basic_stem", "initialise"]
