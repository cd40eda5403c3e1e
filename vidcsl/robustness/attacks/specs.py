"""Solvers by name, and attacks written as words in a config."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor

from vidcsl.errors import UserError
from vidcsl.robustness.attacks.apgd import APGD
from vidcsl.robustness.attacks.autoattack import AutoAttack
from vidcsl.robustness.attacks.fab import FAB
from vidcsl.robustness.attacks.goals import Goal, goal_of
from vidcsl.robustness.attacks.pgd import FGSM, PGD, Adam, MomentumPGD
from vidcsl.robustness.attacks.problem import Problem
from vidcsl.robustness.attacks.square import RandomNoise, RandomSearch, Square
from vidcsl.robustness.threats import THREATS, Frames, Threat, Universal

# ----------------------------------------------------------------------
# Solvers by name.

Solver = Callable[[Problem], Tensor]

SOLVERS: dict[str, Callable[..., Solver]] = {
    "fgsm": FGSM,
    "pgd": PGD,
    "mifgsm": MomentumPGD,
    "apgd": APGD,
    "adam": Adam,
    "fab": FAB,
    "square": Square,
    "autoattack": AutoAttack,
    "random_noise": RandomNoise,
    "random_search": RandomSearch,
}


# ----------------------------------------------------------------------
# Attacks as words: `SOLVER[-GOAL][:option=value,...]/THREAT[:option=value,...]`.
#
# For example `pgd/linf`, `apgd-dlr:steps=100/l2:frames=first:1`, `adam/flicker`, `autoattack/linf`,
# `pgd/linf:region=patch:0.1,eps=64+255`, `pgd/linf:universal=cyclic`. Lists are written with `+`.
# Options are the arguments of the solver's and the threat's class.

USUAL_GOALS = {"fab": "margin", "square": "margin"}  # elsewhere cross-entropy
IN_255 = ("linf", "flicker")  # norms whose budgets are written in 1/255, as pixel values are


@dataclass(frozen=True)
class Run:
    """One attack at several budgets.

    Args:
        name: for files and results; other words give another name.
        words: what the user wrote.
        threats: by budget as shown ("4/255"), smallest first.
    """

    name: str
    words: str
    solver: Solver
    goal: Goal
    threats: dict[str, Threat]


def parse_run(
    words: str,
    *,
    budgets: Mapping[str, Sequence[float]],
    defaults: Mapping[str, Mapping[str, str]],
) -> Run:
    """The attack that the words mean.

    Args:
        words: see this module.
        budgets: by threat, those used where the words give no `eps`; of "linf" and "flicker" in
            1/255.
        defaults: by solver, options used where the words give others or none.

    Raises:
        UserError: they mean nothing.
    """
    solver_words, slash, threat_words = words.strip().partition("/")
    if not slash:
        raise UserError(f"attack {words!r}: write SOLVER/THREAT, for example pgd/linf")
    try:
        solver, goal = _solver(solver_words, defaults)
        return Run(_slug(words), words, solver, goal, _threats(threat_words, budgets))
    except UserError as error:
        raise UserError(f"attack {words!r}: {error}") from None


def _slug(words: str) -> str:
    return re.sub(r"[^\w.=+-]+", "_", words.strip())


def _solver(words: str, defaults: Mapping[str, Mapping[str, str]]) -> tuple[Solver, Goal]:
    name, _, options = words.partition(":")
    name, _, goal = name.partition("-")
    chosen = {**defaults.get(name, {}), **_options(options)}
    return _build(SOLVERS, name, chosen), goal_of(goal or USUAL_GOALS.get(name, "cross_entropy"))


def _threats(words: str, budgets: Mapping[str, Sequence[float]]) -> dict[str, Threat]:
    name, _, text = words.partition(":")
    options = _options(text)
    sizes = _numbers(options.pop("eps")) if "eps" in options else budgets.get(name, [])
    wrap = UNIVERSAL.get(options.pop("universal", "no"))
    if wrap is None:
        raise UserError(f"universal is one of {', '.join(UNIVERSAL)}")
    unit, suffix = (255, "/255") if name in IN_255 else (1, "")
    threats = {
        f"{eps:g}{suffix}": wrap(_build(THREATS, name, {**options, "eps": repr(eps / unit)}))
        for eps in sorted(set(sizes))
    }
    if not threats:
        _build(THREATS, name, {**options, "eps": "0"})  # an unknown name is the better complaint
        raise UserError("no budget: give eps=")
    return threats


UNIVERSAL: dict[str, Callable[[Any], Threat]] = {
    "no": lambda ball: ball,
    "yes": Universal,
    "cyclic": lambda ball: Universal(ball, cyclic=True),
}


def _options(text: str) -> dict[str, str]:
    """{"steps": "20", "restarts": "2"} of "steps=20,restarts=2"."""
    options: dict[str, str] = {}
    for pair in filter(None, text.split(",")):
        key, equals, value = (piece.strip() for piece in pair.partition("="))
        if not equals or not value:
            raise UserError(f"{pair!r} is not option=value")
        if key in options:
            raise UserError(f"{key} is given twice")
        options[key] = value
    return options


def _build(table: Mapping[str, Callable[..., Any]], name: str, options: Mapping[str, str]) -> Any:
    """The class of this name, built with the options in the types that it declares."""
    if name not in table:
        raise UserError(f"unknown {name!r}; choose from {', '.join(table)}")
    declared = {field.name: field.type for field in fields(table[name])}  # type: ignore[arg-type]
    for key in options:
        if key not in declared:
            raise UserError(f"{name} has no option {key}; it has {', '.join(declared)}")
    return table[name](**{key: _typed(key, text, declared[key]) for key, text in options.items()})


def _typed(key: str, text: str, kind: Any) -> Any:
    try:
        return READERS[kind](text)
    except (ValueError, KeyError):
        raise UserError(f"{key}={text} is of the wrong kind") from None


def _numbers(text: str) -> list[float]:
    return [_typed("eps", part, float) for part in text.split("+")]


def _frames(text: str) -> Frames:
    parts = text.split("+")
    return tuple(map(int, parts)) if all(part.isdigit() for part in parts) else text


READERS: dict[Any, Callable[[str], Any]] = {
    int: int,
    float: float,
    float | None: float,
    bool: {"true": True, "false": False}.__getitem__,
    str: str,
    Frames: _frames,
}
