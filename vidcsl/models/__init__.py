"""Encoders by name. Each family registers itself in `ENCODERS`, beside its code."""

from vidcsl.models import frames, mvit, resnet3d, s3d, slow, swin3d, vit  # noqa: F401
from vidcsl.models.encoder import ENCODERS, Encoder

__all__ = ["ENCODERS", "Encoder"]
