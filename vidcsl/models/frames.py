"""An image backbone of timm on every frame, and what joins the frames.

Its weights can come from anywhere in the image world; of motion it sees what differs between
frames: with `mean` nothing of their order, with `transformer` that too.
"""

from typing import Any

import timm
import torch
from einops import rearrange
from timm.layers import trunc_normal_  # type: ignore[attr-defined]
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from vidcsl.errors import UserError
from vidcsl.models.encoder import ENCODERS, NORMALISATIONS, Encoder
from vidcsl.registry import Option

LAYERS = 2  # of the temporal transformer
HEAD_DIM = 64  # or wider, where the features cannot be cut so


class FrameEncoder(nn.Module):
    """Features of frames, joined over time.

    Args:
        image: frames `[N, 3, S, S]` -> features `[N, D]`.
        feature_dim: D.
        clip_frames: frames for which positions are made; other numbers are interpolated.
        temporal: mean, or transformer: two blocks over the frames with learned positions, then the
            mean.
    """

    def __init__(
        self, image: nn.Module, *, feature_dim: int, clip_frames: int, temporal: str
    ) -> None:
        super().__init__()
        self.image, self.feature_dim = image, feature_dim
        self.time_embed: nn.Parameter | None = None
        self.blocks = nn.Sequential()
        if temporal == "transformer":
            most = max(1, feature_dim // HEAD_DIM)
            heads = next(count for count in range(most, 0, -1) if feature_dim % count == 0)
            self.time_embed = nn.Parameter(
                trunc_normal_(torch.zeros(1, clip_frames, feature_dim), std=0.02)
            )
            self.blocks = nn.Sequential(
                *(Block(feature_dim, heads, qkv_bias=True) for _ in range(LAYERS))
            )

    def tokens(self, clips: Tensor) -> Tensor:
        """A vector a frame, `[N, T, D]`."""
        frames = rearrange(clips, "n c t h w -> (n t) c h w").contiguous(
            memory_format=torch.channels_last
        )
        tokens = self.image(frames).unflatten(0, (clips.shape[0], -1))
        if self.time_embed is not None:
            times = nn.functional.interpolate(
                self.time_embed.transpose(1, 2), size=tokens.shape[1], mode="linear"
            )
            tokens = tokens + times.transpose(1, 2)
        through: Tensor = self.blocks(tokens)
        return through

    def forward(self, clips: Tensor) -> Tensor:
        """Features `[N, D]` of normalised clips `[N, 3, T, S, S]`."""
        return self.tokens(clips).mean(dim=1)


@ENCODERS.register(
    "frames",
    "an image backbone per frame",
    IMAGE=Option("resnet18", "frames: image backbone, a name that timm knows"),
    TEMPORAL=Option(
        "mean",
        "frames: how frames are joined; transformer sees their order",
        ("mean", "transformer"),
    ),
)
def frames(
    *, clip_frames: int, frame_size: int, image: str = "resnet18", temporal: str = "mean"
) -> Encoder:
    """A timm image backbone per frame; slim ones are chosen by name (resnet10t, vit_tiny_...).

    Raises:
        UserError: timm knows no such backbone, or none of this size.
    """
    if image not in timm.list_models():
        close = timm.list_models(f"*{image[:6]}*")[:3]
        hint = f"; near it: {', '.join(close)}" if close else ""
        raise UserError(f"MODEL.IMAGE: timm has no backbone {image!r}{hint}")
    published = timm.get_pretrained_cfg(image)
    fixed = bool(published and published.fixed_input_size)
    options: dict[str, Any] = {"img_size": frame_size} if fixed else {}
    try:
        network = timm.create_model(image, num_classes=0, **options)
        feature_dim = _feature_dim(network, frame_size)
    except (AssertionError, ValueError, RuntimeError) as error:
        raise UserError(
            f"MODEL.IMAGE {image} takes no frames of MODEL.FRAME_SIZE {frame_size}: {error}"
        ) from error
    return Encoder(
        FrameEncoder(network, feature_dim=feature_dim, clip_frames=clip_frames, temporal=temporal),
        feature_dim=feature_dim,
        clip_frames=clip_frames,
        frame_size=frame_size,
        normalisation=_normalisation(published.mean, published.std) if published else "imagenet",
    )


@torch.no_grad()
def _feature_dim(network: nn.Module, frame_size: int) -> int:
    """Of a frame that has passed through: what timm says of a backbone is not always so."""
    features = network.eval()(torch.zeros(1, 3, frame_size, frame_size))
    network.train()
    if features.ndim != 2:
        raise ValueError(f"its features have the shape {list(features.shape)}")
    return int(features.shape[1])


def _normalisation(mean: tuple[float, ...], std: tuple[float, ...]) -> str:
    """The name of these statistics; ImageNet's where they have none."""
    names = (name for name, known in NORMALISATIONS.items() if known == (tuple(mean), tuple(std)))
    return next(names, "imagenet")
