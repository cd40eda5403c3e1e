"""A timm image backbone on every frame, and a mean or a transformer over the frames.

It can start from any image weights. It sees motion only as the difference between frames; `mean`
ignores their order, `transformer` uses it.
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
HEAD_DIM = 64  # wider if the feature length is not divisible


class FrameEncoder(nn.Module):
    """Features of single frames, pooled over time.

    Args:
        image: frames `[N, 3, S, S]` -> features `[N, D]`.
        feature_dim: D.
        clip_frames: number of learned positions; clips of another length interpolate them.
        temporal: "mean", or "transformer" for two blocks over the frames with learned positions,
            then the mean.
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
        """One vector per frame, `[N, T, D]`."""
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
    IMAGE=Option("resnet18", "frames: image backbone, the name of a timm model"),
    TEMPORAL=Option(
        "mean",
        "frames: how the features of frames are combined; transformer uses their order",
        ("mean", "transformer"),
    ),
)
def frames(
    *, clip_frames: int, frame_size: int, image: str = "resnet18", temporal: str = "mean"
) -> Encoder:
    """A timm image backbone per frame; for a slim one choose its name (resnet10t, vit_tiny_...).

    Raises:
        UserError: timm has no such backbone, or it does not accept frames of this size.
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
        # Measured on a frame: timm's `num_features` is not the output size of every backbone.
        with torch.no_grad():
            features = network.eval()(torch.zeros(1, 3, frame_size, frame_size))
        network.train()
        if features.ndim != 2:
            raise ValueError(f"its features have the shape {list(features.shape)}")
    except (AssertionError, ValueError, RuntimeError) as error:
        raise UserError(
            f"MODEL.IMAGE {image} takes no frames of MODEL.FRAME_SIZE {frame_size}: {error}"
        ) from error
    feature_dim, normalisation = int(features.shape[1]), "imagenet"
    if published:
        own = (tuple(published.mean), tuple(published.std))
        known = (name for name, each in NORMALISATIONS.items() if each == own)
        normalisation = next(known, "imagenet")
    return Encoder(
        FrameEncoder(network, feature_dim=feature_dim, clip_frames=clip_frames, temporal=temporal),
        feature_dim=feature_dim,
        clip_frames=clip_frames,
        frame_size=frame_size,
        normalisation=normalisation,
    )
