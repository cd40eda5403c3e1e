"""The encoder, by name, with the options that it takes."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from fvcore.common.config import CfgNode

from vidcsl.errors import UserError
from vidcsl.models import ENCODERS, Encoder
from vidcsl.models.dual_norm import with_norm_sets
from vidcsl.options import OPTIONS
from vidcsl.seeding import seed_of

# Options of some encoders only, and what the encoders call them.
_SHAPES = {
    "MODEL.WIDTH": "width",
    "MODEL.DEPTH": "depth",
    "MODEL.HEADS": "heads",
    "MODEL.TUBELET": "tubelet",
    "MODEL.ATTENTION": "attention",
    "MODEL.POSITIONS": "positions",
    "MODEL.POOLING": "pooling",
    "MODEL.IMAGE": "image",
    "MODEL.TEMPORAL": "temporal",
}


def build_encoder(cfg: CfgNode) -> Encoder:
    """An encoder with fresh weights that depend on the seed alone.

    Raises:
        UserError: it does not take an option that was set, or clips of this shape.
    """
    build = ENCODERS[cfg.MODEL.NAME]
    with torch.random.fork_rng():
        torch.manual_seed(seed_of(cfg.SEED, "encoder"))
        encoder = build(
            clip_frames=cfg.DATA.FRAMES, frame_size=cfg.MODEL.FRAME_SIZE, **_shape(cfg, build)
        )
    if cfg.MODEL.NORMALISE != "auto":
        encoder.normalise_by(cfg.MODEL.NORMALISE)
    if cfg.MODEL.DUAL_NORM:
        with_norm_sets(encoder)
    return encoder


def encoder_options(name: str) -> list[str]:
    """The options that this encoder takes beside those that all take."""
    taken = inspect.signature(ENCODERS[name]).parameters
    return [key for key, parameter in _SHAPES.items() if parameter in taken]


def _shape(cfg: CfgNode, build: Callable[..., Encoder]) -> dict[str, Any]:
    taken, shape = inspect.signature(build).parameters, {}
    for key, parameter in _SHAPES.items():
        value = getattr(cfg.MODEL, key.removeprefix("MODEL."))
        if parameter in taken:
            shape[parameter] = value
        elif value != OPTIONS[key].default:
            raise UserError(f"{key} {value} means nothing to MODEL.NAME {cfg.MODEL.NAME}")
    return shape
