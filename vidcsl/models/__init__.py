"""Encoders by name; a new one is one file and one line here."""

from collections.abc import Callable

from vidcsl.models.encoder import Encoder
from vidcsl.models.r2plus1d import r2plus1d_18, r2plus1d_34

ENCODERS: dict[str, Callable[..., Encoder]] = {
    "r2plus1d_18": r2plus1d_18,
    "r2plus1d_34": r2plus1d_34,
}

__all__ = ["ENCODERS", "Encoder"]
