"""From a config to an encoder with its weights."""

from pathlib import Path

import torch
from fvcore.common.config import CfgNode

from vidcsl.config import load_config, value_of
from vidcsl.errors import UserError
from vidcsl.methods import METHODS
from vidcsl.models import ENCODERS, Encoder
from vidcsl.models.batchnorm import ADVERSARIAL, CLEAN, add_auxiliary_batchnorm, has_batchnorm
from vidcsl.models.pretrained import load_pretrained, parse_weights
from vidcsl.registry import arguments_of
from vidcsl.seeding import seed_of


def build_encoder(cfg: CfgNode) -> Encoder:
    """An encoder with fresh weights that depend on the seed alone.

    It normalises as MODEL.WEIGHTS want it, if there are any; `load_weights_of` loads them.

    Raises:
        UserError: it does not take an option that was set, or clips of this shape.
    """
    name = cfg.MODEL.NAME
    taken = ["MODEL.NAME", *encoder_options(name)]
    for key, option in ENCODERS.options().items():
        if key not in taken and value_of(cfg, key) != option.default:
            takers = ", ".join(ENCODERS.takers(key.removeprefix("MODEL.")))
            raise UserError(
                f"MODEL.NAME {name} takes no {key}: leave it at {option.default}, or choose from "
                f"{takers}"
            )
    with torch.random.fork_rng():
        torch.manual_seed(seed_of(cfg.SEED, "encoder"))
        encoder: Encoder = ENCODERS.build(
            name, cfg.MODEL, clip_frames=cfg.DATA.FRAMES, frame_size=cfg.MODEL.FRAME_SIZE
        )
    pixels = encoder.normalisation
    if cfg.MODEL.WEIGHTS:
        pixels = parse_weights(cfg.MODEL.WEIGHTS).layout.normalisation or pixels
    if cfg.MODEL.NORMALISE != "auto":
        pixels = cfg.MODEL.NORMALISE
    encoder.normalise_by(pixels, bgr=is_bgr(cfg))
    sets = batchnorm_names(cfg)
    # A method's own sets are no matter to encoders without BatchNorm, such as video ViTs: these
    # see clean and perturbed clips with the same weights.
    if len(sets) > 1 and (cfg.MODEL.DUAL_NORM or has_batchnorm(encoder)):
        add_auxiliary_batchnorm(encoder, sets)
    return encoder


def batchnorm_names(cfg: CfgNode) -> tuple[str, ...]:
    """The names of the encoder's sets of BatchNorms; one name: it has each BatchNorm once."""
    wanted = METHODS[cfg.METHOD.NAME].batchnorm_names
    return (CLEAN, ADVERSARIAL) if cfg.MODEL.DUAL_NORM and len(wanted) == 1 else wanted


def check_batchnorm_name(cfg: CfgNode) -> None:
    """Raise UserError where the BatchNorms that are to be judged are none of the encoder's."""
    name, sets = cfg.EVALUATE.NORMS, batchnorm_names(cfg)
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
        f"{path}: {config} has pixels {theirs.normalisation}, this config has "
        f"{encoder.normalisation}: see MODEL.NORMALISE and MODEL.CHANNELS"
    ]


def is_bgr(cfg: CfgNode) -> bool:
    """Whether MODEL.WEIGHTS were learned on BGR pixels."""
    if cfg.MODEL.CHANNELS != "auto" or not cfg.MODEL.WEIGHTS:
        return bool(cfg.MODEL.CHANNELS == "bgr")
    return parse_weights(cfg.MODEL.WEIGHTS).layout.bgr


def encoder_options(name: str) -> list[str]:
    """The config keys that this encoder takes, beside those that all encoders take."""
    taken = arguments_of(ENCODERS[name])
    return [key for key in ENCODERS.options() if key.removeprefix("MODEL.").lower() in taken]
