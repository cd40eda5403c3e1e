"""What is attacked, and on which pixels."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from fvcore.common.config import CfgNode
from torch import nn

from vidcsl.errors import UserError
from vidcsl.evaluation.features import Features
from vidcsl.models.heads import Classifier
from vidcsl.robustness.clips import Clips, cropped_clips, decoded_frames
from vidcsl.robustness.targets import TRANSFORMS, Expectation, Look, Target, classifier, neighbours


@dataclass(frozen=True)
class Input:
    """Which pixels are changed: how many views and crops look at them, and what is made of them."""

    views: int
    crops: int
    pixels: Callable[..., Iterator[Clips]]


def build_input(cfg: CfgNode) -> Input:
    """The pixels that ATTACK.INPUT names."""
    inputs = {
        "clip": Input(1, 1, cropped_clips),
        "frames": Input(1, 1, decoded_frames),
        "video": Input(cfg.EVALUATE.TEST_VIEWS, cfg.EVALUATE.CROPS, decoded_frames),
    }
    return inputs[cfg.ATTACK.INPUT]


def build_targets(
    cfg: CfgNode,
    encoder: nn.Module,
    heads: Mapping[str, nn.Linear],
    gallery: Features,
    *,
    classes: int,
) -> dict[str, Target]:
    """What ATTACK.TARGETS names, by what is appended to an attack's name ("" for the probe).

    Args:
        cfg: the config.
        encoder: in eval mode, on its device.
        heads: linear layers on it, by what is appended to the name.
        gallery: features of the training videos.
        classes: how many there are.
    """
    check_targets(cfg)
    found: dict[str, Target] = {}
    for name in cfg.ATTACK.TARGETS:
        found |= _TARGETS[name](cfg, encoder, heads, gallery, classes=classes)
    input_ = "" if cfg.ATTACK.INPUT == "clip" else f"_{cfg.ATTACK.INPUT}"
    if cfg.ATTACK.PREPROCESSING == "none":
        return {input_ + suffix: target for suffix, target in found.items()}
    suffix_of = f"{input_}_random_{cfg.ATTACK.PREPROCESSING}".__add__
    return {suffix_of(suffix): _in_expectation(cfg, target) for suffix, target in found.items()}


def check_targets(cfg: CfgNode) -> None:
    """Raise UserError where a target is not known."""
    unknown = [name for name in cfg.ATTACK.TARGETS if name not in _TARGETS]
    if unknown:
        raise UserError(f"ATTACK.TARGETS: unknown {unknown[0]!r}; choose from {list(_TARGETS)}")


def _classifiers(
    _cfg: CfgNode,
    encoder: nn.Module,
    heads: Mapping[str, nn.Linear],
    _gallery: Features,
    *,
    classes: int,  # noqa: ARG001
) -> dict[str, Target]:
    models = {suffix: Classifier(encoder, head).eval() for suffix, head in heads.items()}  # type: ignore[arg-type]
    return {suffix: classifier(model) for suffix, model in models.items()}


def _neighbours(
    cfg: CfgNode,
    encoder: nn.Module,
    _heads: Mapping[str, nn.Linear],
    gallery: Features,
    *,
    classes: int,
    name: str,
    k: int | None = None,
) -> dict[str, Target]:
    labelled = gallery.labels >= 0
    device = next(encoder.parameters()).device
    return {
        f"_{name}": neighbours(
            encoder,
            gallery.pooled()[labelled].to(device),
            gallery.labels[labelled].to(device),
            classes=classes,
            k=k or cfg.EVALUATE.KNN_K,
        )
    }


_TARGETS: dict[str, Callable[..., dict[str, Target]]] = {
    "classifier": _classifiers,
    "knn": partial(_neighbours, name="knn"),
    "retrieval": partial(_neighbours, name="retrieval", k=1),
}


def _in_expectation(cfg: CfgNode, target: Target) -> Target:
    options: dict[str, Any] = {"draws": cfg.ATTACK.DRAWS, "seed": cfg.SEED}
    transform = TRANSFORMS[cfg.ATTACK.PREPROCESSING]()

    def behind(look: Look) -> nn.Module:
        return Expectation(target(look), transform, **options)

    return behind
