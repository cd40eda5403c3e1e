"""Augmentation of training clips and crops of test clips."""

from collections.abc import Sequence

from fvcore.common.config import CfgNode

from vidcsl.augment.pipeline import EvalCrop, TrainAugmentation
from vidcsl.builders.corruptions import build_random_corruption
from vidcsl.config import value_of
from vidcsl.errors import UserError


def build_augmentation(cfg: CfgNode) -> TrainAugmentation:
    """Random views of training clips."""
    options = cfg.AUGMENT
    return TrainAugmentation(
        size=cfg.MODEL.FRAME_SIZE,
        cropped=options.CROP_BY == "decoder",
        crop_area=_pair("AUGMENT.CROP_AREA", options.CROP_AREA),
        crop_aspect=_pair("AUGMENT.CROP_ASPECT", options.CROP_ASPECT),
        flip=options.FLIP,
        jitter=_quadruple("AUGMENT.JITTER", options.JITTER),
        jitter_probability=options.JITTER_PROBABILITY,
        gray_probability=options.GRAY_PROBABILITY,
        blur_probability=_per_view("AUGMENT.BLUR_PROBABILITY", cfg),
        blur_sigma=_pair("AUGMENT.BLUR_SIGMA", options.BLUR_SIGMA),
        solarise_probability=_per_view("AUGMENT.SOLARISE_PROBABILITY", cfg),
        motion_probability=_per_view("AUGMENT.MOTION_PROBABILITY", cfg),
        corrupt=build_random_corruption(cfg),
        strengths=tuple(options.STRENGTHS),
    )


def build_crop(cfg: CfgNode, *, crops: int = 1) -> EvalCrop:
    """Fixed crops of test clips."""
    return EvalCrop(size=cfg.MODEL.FRAME_SIZE, crops=crops)


def _pair(key: str, values: Sequence[float]) -> tuple[float, float]:
    if len(values) != 2:
        raise UserError(f"{key} needs two values, not {list(values)}")
    return values[0], values[1]


def _quadruple(key: str, values: Sequence[float]) -> tuple[float, float, float, float]:
    if len(values) != 4:
        raise UserError(f"{key} needs four values, not {list(values)}")
    return values[0], values[1], values[2], values[3]


def _per_view(key: str, cfg: CfgNode) -> float | Sequence[float]:
    """One for all views, or one for each; clips that only vote are treated as the last one."""
    values: Sequence[float] = value_of(cfg, key)
    if not values:
        raise UserError(f"{key} needs a value, or one for each view: there is none")
    if len(values) == 1:
        return values[0]
    return (*values, *[values[-1]] * cfg.FALSE_NEGATIVES.VOTERS)
