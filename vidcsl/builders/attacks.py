"""Attacks, by name and budget."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from fvcore.common.config import CfgNode
from torch import Tensor, nn

from vidcsl.errors import UserError
from vidcsl.robustness.attack_curve import Attack
from vidcsl.robustness.attacks import PGD, attack
from vidcsl.robustness.attacks.autoattack import AutoAttack
from vidcsl.robustness.attacks.fab import FAB, knows
from vidcsl.robustness.attacks.goals import GOALS, Targeted, Untargeted
from vidcsl.robustness.attacks.specs import Run, parse_run
from vidcsl.robustness.attacks.universal import UniversalAttack
from vidcsl.robustness.clips import Clips
from vidcsl.robustness.threats import LEVEL, THREATS, Threat, Universal, check_frames

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
