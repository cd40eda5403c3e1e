"""From a config to an encoder with its weights."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from fvcore.common.config import CfgNode

from vidcsl.config import load_config
from vidcsl.errors import UserError
from vidcsl.methods import METHODS
from vidcsl.models import ENCODERS, Encoder
from vidcsl.models.norm_sets import ADVERSARIAL, CLEAN, has_norms, with_norm_sets
from vidcsl.models.pretrained import load_pretrained, parse_weights
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

    It normalises as MODEL.WEIGHTS want it, if there are any; `load_weights_of` loads them.

    Raises:
        UserError: it does not take an option that was set, or clips of this shape.
    """
    build = ENCODERS[cfg.MODEL.NAME]
    with torch.random.fork_rng():
        torch.manual_seed(seed_of(cfg.SEED, "encoder"))
        encoder = build(
            clip_frames=cfg.DATA.FRAMES, frame_size=cfg.MODEL.FRAME_SIZE, **_shape(cfg, build)
        )
    _normalise(encoder, cfg)
    sets = norm_sets(cfg)
    # A method's own sets are no matter to encoders without BatchNorm, such as video ViTs: these
    # see clean and perturbed clips with the same weights.
    if len(sets) > 1 and (cfg.MODEL.DUAL_NORM or has_norms(encoder)):
        with_norm_sets(encoder, sets)
    return encoder


def norm_sets(cfg: CfgNode) -> tuple[str, ...]:
    """The names of the encoder's sets of BatchNorms; one name: it has each BatchNorm once."""
    wanted = METHODS[cfg.METHOD.NAME].norm_sets
    return (CLEAN, ADVERSARIAL) if cfg.MODEL.DUAL_NORM and len(wanted) == 1 else wanted


def check_norms(cfg: CfgNode) -> None:
    """Raise UserError where the BatchNorms that are to be judged are none of the encoder's."""
    name, sets = cfg.EVALUATE.NORMS, norm_sets(cfg)
    if name not in sets:
        has = f"has the sets {', '.join(sets)}" if len(sets) > 1 else "has each BatchNorm once"
        raise UserError(
            f"EVALUATE.NORMS {name}: the encoder {has}; see MODEL.DUAL_NORM in docs/models.md"
        )


def load_weights_of(cfg: CfgNode, encoder: Encoder, *, source: str = "") -> list[str]:
    """Load MODEL.WEIGHTS into `build_encoder`'s encoder; sentences on what was not one to one.

    Args:
        cfg: what the encoder was made from.
        encoder: changed in place.
        source: FORMAT:PATH of other weights that are loaded instead.

    Raises:
        UserError: they cannot be read, or do not fit.
    """
    weights = parse_weights(source or cfg.MODEL.WEIGHTS)
    notes = load_pretrained(
        encoder,
        weights,
        name=cfg.MODEL.NAME,
        strict=cfg.MODEL.WEIGHTS_STRICT,
        # Ours are turned already, whatever they were learned from.
        bgr=is_bgr(cfg) and not weights.ours,
    )
    return notes + (_other_pixels(encoder, weights.path) if weights.ours else [])


def _other_pixels(encoder: Encoder, path: Path) -> list[str]:
    """A sentence where the config beside weights of ours has other pixel statistics."""
    beside = (path.with_name("encoder.yaml"), path.parent.parent / "config.yaml")
    config = next((file for file in beside if file.is_file()), None)
    try:
        theirs = build_encoder(load_config(config)) if config else encoder
    except UserError:  # of another version, say: it is not what is to be loaded
        return []
    if torch.equal(theirs.mean, encoder.mean) and torch.equal(theirs.std, encoder.std):
        return []
    return [
        f"{path}: {config} has pixels {theirs.normalisation}, here they are "
        f"{encoder.normalisation}: see MODEL.NORMALISE and MODEL.CHANNELS"
    ]


def is_bgr(cfg: CfgNode) -> bool:
    """Whether MODEL.WEIGHTS were learned on BGR pixels."""
    if cfg.MODEL.CHANNELS != "auto" or not cfg.MODEL.WEIGHTS:
        return bool(cfg.MODEL.CHANNELS == "bgr")
    return parse_weights(cfg.MODEL.WEIGHTS).layout.bgr


def _normalise(encoder: Encoder, cfg: CfgNode) -> None:
    name = encoder.normalisation
    if cfg.MODEL.WEIGHTS:
        name = parse_weights(cfg.MODEL.WEIGHTS).layout.normalisation or name
    if cfg.MODEL.NORMALISE != "auto":
        name = cfg.MODEL.NORMALISE
    encoder.normalise_by(name, bgr=is_bgr(cfg))


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
