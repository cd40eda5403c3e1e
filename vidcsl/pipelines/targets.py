"""From a config to attacks, and to what they attack."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from fvcore.common.config import CfgNode
from torch import Tensor, nn

from vidcsl.errors import UserError
from vidcsl.evaluation.features import Features
from vidcsl.models.encoder import Classifier
from vidcsl.robustness.attack_curve import Attack
from vidcsl.robustness.attacks import GOALS, PGD, AutoAttack, attack
from vidcsl.robustness.attacks.goals import Targeted, Untargeted
from vidcsl.robustness.attacks.specs import AttackSpec, parse_attack
from vidcsl.robustness.attacks.universal import UniversalAttack
from vidcsl.robustness.targets import (
    INPUTS,
    TRANSFORMS,
    Clips,
    Expectation,
    InputView,
    Target,
    Transform,
    classifier,
    neighbours,
)
from vidcsl.robustness.threats import LEVEL, THREATS, Threat, Universal, check_frames

SAME_REGIONS = ("all", "border")  # of every clip, so that one delta can fit all clips
DEFAULTS = {"pgd": ("steps", "restarts"), "mifgsm": ("steps",)}  # options taken from ATTACK.*
TARGETS = ("classifier", "knn", "retrieval")


def attack_specs(cfg: CfgNode) -> list[AttackSpec]:
    """The attacks that `ATTACK.RUNS` names, at the budgets of their threats.

    Raises:
        UserError: a spec is not understood, is given twice, or does not fit the config.
    """
    options = cfg.ATTACK
    given = {"steps": str(options.STEPS), "restarts": str(options.RESTARTS)}
    specs = [
        parse_attack(
            text,
            budgets={name: options[f"EPS_{name.upper()}"] for name in THREATS},
            defaults={name: {key: given[key] for key in keys} for name, keys in DEFAULTS.items()},
        )
        for text in options.RUNS
    ]
    for name, count in Counter(spec.name for spec in specs).items():
        if count > 1:
            raise UserError(f"ATTACK.RUNS: {name} is given twice")
    for spec in specs:
        _check(spec, cfg)
    return specs


def _check(spec: AttackSpec, cfg: CfgNode) -> None:
    """Raise UserError, before anything runs, where solver, threat and config do not fit."""
    named = f"attack {spec.spec!r}"
    if isinstance(spec.solver, AutoAttack) and spec.goal is not GOALS["cross_entropy"]:
        raise UserError(f"{named}: autoattack has goals of its own: give none")
    for budget, threat in spec.threats.items():
        check_frames(threat.frames, cfg.DATA.FRAMES)
        if isinstance(threat, Universal):
            rule = isinstance(threat.frames, str) and threat.frames.partition(":")[0]
            same_frames = rule in (False, "all", "first")
            same_region = threat.ball.region.partition(":")[0] in SAME_REGIONS
            fits = type(spec.solver) is PGD and cfg.ATTACK.INPUT == "clip"
            if not (fits and same_frames and same_region):
                raise UserError(
                    f"{named}: universal perturbations are fitted by pgd, on whole clips "
                    "(ATTACK.INPUT clip), in frames and a region that do not depend on the clip"
                )
        if cfg.ATTACK.QUANTISE and threat.eps < LEVEL * (1 - 1e-9):
            raise UserError(
                f"{named}: eps {budget} allows no change in 8 bits "
                "(ATTACK.QUANTISE): use budgets from 1/255"
            )


def check_classes(cfg: CfgNode, count: int) -> None:
    """Raise UserError where the goal of an attack is not defined for so few classes."""
    for spec in attack_specs(cfg):
        if isinstance(spec.goal, Untargeted | Targeted) and count < spec.goal.classes:
            raise UserError(
                f"attack {spec.spec!r}: its goal needs {spec.goal.classes} or more classes, "
                f"not {count}"
            )


def build_attacks(
    spec: AttackSpec, cfg: CfgNode, *, training: Callable[[], Iterable[Clips]] = tuple
) -> dict[str, Attack]:
    """`{"0.25/255": attack, ...}` of a spec, smallest budget first.

    Args:
        spec: one of `attack_specs`.
        cfg: the config.
        training: gives the clips on which universal perturbations are fitted.
    """

    def at(threat: Threat) -> Attack:
        if isinstance(threat, Universal) and isinstance(spec.solver, PGD):
            return UniversalAttack(training, threat, spec.goal, spec.solver, cfg.ATTACK.QUANTISE)

        def run(
            model: nn.Module,
            clips: Tensor,
            labels: Tensor,
            seeds: Sequence[int],
            start: Tensor | None = None,
        ) -> Tensor:
            # A delta of fewer numbers than the clips have (flicker) cannot be read off clips.
            warm = start if threat.zero(clips[:1]).shape == clips[:1].shape else None
            return attack(
                model,
                clips,
                labels,
                threat=threat,
                goal=spec.goal,
                solver=spec.solver,
                seeds=seeds,
                start=warm,
                quantise=cfg.ATTACK.QUANTISE,
            )

        return run

    return {budget: at(threat) for budget, threat in spec.threats.items()}


@dataclass(frozen=True)
class Input:
    """Which pixels are changed: views and crops of each video, and how clips are made of these."""

    views: int
    crops: int
    pixels: Callable[..., Iterator[Clips]]


def build_input(cfg: CfgNode) -> Input:
    """The pixels that ATTACK.INPUT names."""
    name = cfg.ATTACK.INPUT
    views, crops = (1, 1)
    if name == "video":
        views, crops = cfg.EVALUATE.TEST_VIEWS, cfg.EVALUATE.CROPS
    return Input(views, crops, INPUTS[name])


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
        if name == "classifier":
            for suffix, head in heads.items():
                found[suffix] = classifier(Classifier(encoder, head).eval())  # type: ignore[arg-type]
        else:
            labelled, device = gallery.labels >= 0, next(encoder.parameters()).device
            found[f"_{name}"] = neighbours(
                encoder,
                gallery.pooled()[labelled].to(device),
                gallery.labels[labelled].to(device),
                classes=classes,
                k=1 if name == "retrieval" else cfg.EVALUATE.KNN_K,
            )
    prefix = "" if cfg.ATTACK.INPUT == "clip" else f"_{cfg.ATTACK.INPUT}"
    transform = TRANSFORMS.build(cfg.ATTACK.PREPROCESSING, {})
    if transform is not None:
        prefix += f"_random_{cfg.ATTACK.PREPROCESSING}"
        found = {key: _in_expectation(cfg, target, transform) for key, target in found.items()}
    return {prefix + suffix: target for suffix, target in found.items()}


def _in_expectation(cfg: CfgNode, target: Target, transform: Transform) -> Target:
    def behind(view: InputView) -> nn.Module:
        return Expectation(target(view), transform, draws=cfg.ATTACK.DRAWS, seed=cfg.SEED)

    return behind


def check_targets(cfg: CfgNode) -> None:
    """Raise UserError where a target is not known."""
    for name in cfg.ATTACK.TARGETS:
        if name not in TARGETS:
            raise UserError(f"ATTACK.TARGETS: unknown {name!r}; choose from {list(TARGETS)}")
