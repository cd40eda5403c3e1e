"""From a config to attacks and what they attack."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from fvcore.common.config import CfgNode
from torch import Tensor, nn

from vidcsl.errors import UserError
from vidcsl.evaluation.features import Features
from vidcsl.models.encoder import Classifier
from vidcsl.robustness.attack_curve import Attack
from vidcsl.robustness.attacks import PGD, attack
from vidcsl.robustness.attacks.autoattack import AutoAttack
from vidcsl.robustness.attacks.fab import FAB, knows
from vidcsl.robustness.attacks.goals import GOALS, Targeted, Untargeted
from vidcsl.robustness.attacks.specs import Run, parse_run
from vidcsl.robustness.attacks.universal import UniversalAttack
from vidcsl.robustness.targets import (
    TRANSFORMS,
    Clips,
    Expectation,
    Look,
    Target,
    classifier,
    cropped_clips,
    decoded_frames,
    neighbours,
)
from vidcsl.robustness.threats import LEVEL, THREATS, Threat, Universal, check_frames

# ----------------------------------------------------------------------
# Attacks, by name and budget.

SAME = ("all", "border")  # regions that are the same in every clip
DEFAULTS = {"pgd": ("steps", "restarts"), "mifgsm": ("steps",)}  # solvers with ATTACK.STEPS ...


def build_attack_runs(cfg: CfgNode) -> list[Run]:
    """The attacks that `ATTACK.RUNS` names, at the budgets of their norms."""
    options = cfg.ATTACK
    given = {"steps": str(options.STEPS), "restarts": str(options.RESTARTS)}
    runs = [
        parse_run(
            words,
            budgets={norm: options[f"EPS_{norm.upper()}"] for norm in THREATS},
            defaults={name: {key: given[key] for key in keys} for name, keys in DEFAULTS.items()},
        )
        for words in options.RUNS
    ]
    for name, count in Counter(run.name for run in runs).items():
        if count > 1:
            raise UserError(f"ATTACK.RUNS: {name} is there twice")
    for run in runs:
        _check(run, cfg)
    return runs


def check_classes(cfg: CfgNode, count: int) -> None:
    """Raise UserError where the goal of an attack is not defined for so few classes."""
    for run in build_attack_runs(cfg):
        if isinstance(run.goal, Untargeted | Targeted) and count < run.goal.classes:
            raise UserError(
                f"attack {run.words!r}: its goal needs {run.goal.classes} or more classes, "
                f"not {count}"
            )


def build_attacks(
    run: Run, cfg: CfgNode, *, training: Callable[[], Iterable[Clips]] = tuple
) -> dict[str, Attack]:
    """`{"0.25/255": attack, ...}` of a run, smallest budget first.

    Args:
        run: one of `build_attack_runs`.
        cfg: the config.
        training: gives the clips on which universal perturbations are fitted.
    """
    return {
        budget: _build_attack(run, threat, training, quantise=cfg.ATTACK.QUANTISE)
        for budget, threat in run.threats.items()
    }


def _build_attack(
    run: Run, threat: Threat, training: Callable[[], Iterable[Clips]], *, quantise: bool
) -> Attack:
    if isinstance(threat, Universal) and isinstance(run.solver, PGD):
        return UniversalAttack(training, threat, run.goal, run.solver, quantise)
    return partial(_attack, run=run, threat=threat, quantise=quantise)


def _check(run: Run, cfg: CfgNode) -> None:
    """What does not fit each other, clips of this length or 8 bits is told before anything runs."""
    if isinstance(run.solver, AutoAttack) and run.goal is not GOALS["cross_entropy"]:
        raise UserError(f"attack {run.words!r}: autoattack brings its own goals: name none")
    for budget, threat in run.threats.items():
        check_frames(threat.frames, cfg.DATA.FRAMES)
        if isinstance(threat, Universal) and not _can_be_fitted(run, threat, cfg):
            raise UserError(
                f"attack {run.words!r}: universal perturbations are fitted by pgd, on whole clips "
                "(ATTACK.INPUT clip), in frames and a region that depend on no clip"
            )
        if isinstance(run.solver, FAB) and not knows(threat):
            raise UserError(f"attack {run.words!r}: fab knows linf, l2 and l1 over the whole clip")
        if cfg.ATTACK.QUANTISE and threat.eps < LEVEL * (1 - 1e-6):
            raise UserError(
                f"attack {run.words!r}: eps {budget} allows no change in 8 bits "
                "(ATTACK.QUANTISE): use budgets from 1/255"
            )


def _can_be_fitted(run: Run, threat: Universal, cfg: CfgNode) -> bool:
    chosen = isinstance(threat.frames, str) and threat.frames.partition(":")[0]
    same = chosen in (False, "all", "first") and threat.ball.region.partition(":")[0] in SAME
    return type(run.solver) is PGD and cfg.ATTACK.INPUT == "clip" and same


def _attack(
    model: nn.Module,
    clips: Tensor,
    labels: Tensor,
    seeds: Sequence[int],
    start: Tensor | None = None,
    *,
    run: Run,
    threat: Threat,
    quantise: bool,
) -> Tensor:
    # A delta of fewer numbers than the clips have (flicker, universal) cannot be read off clips.
    warm = start if threat.zero(clips[:1]).shape == clips[:1].shape else None
    return attack(
        model,
        clips,
        labels,
        threat=threat,
        goal=run.goal,
        solver=run.solver,
        seeds=seeds,
        start=warm,
        quantise=quantise,
    )


# ----------------------------------------------------------------------
# What is attacked, and on which pixels.


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
