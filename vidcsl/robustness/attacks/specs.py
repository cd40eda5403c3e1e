"""Attacks as spec strings: `SOLVER[-GOAL][:option=value,...]/THREAT[:option=value,...]`.

For example `pgd/linf`, `apgd-dlr:steps=100/l2:frames=first:1`, `adam/flicker`, `autoattack/linf`,
`pgd/linf:region=patch:0.1,eps=64+255`, `pgd/linf:universal=cyclic`. Lists are written with `+`.
Solvers, goals and threats are those registered in SOLVERS, GOALS and THREATS; their options are the
fields of their dataclasses, with the same names, types and defaults.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from torch import nn

from vidcsl.errors import UserError
from vidcsl.robustness.attacks.goals import Goal, goal_of
from vidcsl.robustness.attacks.problem import SOLVERS, Solver, check_pair
from vidcsl.robustness.threats import THREATS, Frames, Threat, Universal

UNIVERSAL: dict[str, Callable[[Any], Threat]] = {
    "no": lambda ball: ball,
    "yes": Universal,
    "cyclic": lambda ball: Universal(ball, cyclic=True),
}


@dataclass(frozen=True)
class AttackSpec:
    """One attack at several budgets.

    Args:
        name: for files and results; another spec has another name.
        spec: what the user wrote.
        threats: by budget as shown ("4/255"), smallest first.
    """

    name: str
    spec: str
    solver: Solver
    goal: Goal
    threats: dict[str, Threat]


def parse_attack(
    spec: str,
    *,
    budgets: Mapping[str, Sequence[float]],
    defaults: Mapping[str, Mapping[str, str]],
) -> AttackSpec:
    """The attack that a spec describes.

    Args:
        spec: see this module.
        budgets: by threat, those used where the spec gives no `eps`; of "linf" and "flicker" in
            1/255.
        defaults: by solver, options used where the spec gives none.

    Raises:
        UserError: the spec is not understood.
    """
    solver_spec, slash, threat_spec = spec.strip().partition("/")
    if not slash:
        raise UserError(f"attack {spec!r}: write SOLVER/THREAT, for example pgd/linf")
    try:
        solver_name, _, text = solver_spec.partition(":")
        solver_name, _, goal_name = solver_name.partition("-")
        solver = _build(SOLVERS, solver_name, {**defaults.get(solver_name, {}), **_options(text)})
        goal = goal_of(goal_name or getattr(solver, "default_goal", "cross_entropy"))
        threat_name, _, text = threat_spec.partition(":")
        threats = _threats(threat_name, _options(text), budgets.get(threat_name, []))
        for threat in threats.values():
            check_pair(solver, threat)
    except UserError as error:
        raise UserError(f"attack {spec!r}: {error}") from None
    # The name becomes that of files and of a section of the results.
    name = re.sub(r"[^\w.=+-]+", "_", spec.strip())
    return AttackSpec(name, spec, solver, goal, threats)


def versions(*parts: object) -> dict[str, dict[str, int]]:
    """What a cached result depends on beside the names of an attack's parts.

    A solver, threat or target whose numbers changed has a `VERSION` above 1; the first has no key,
    so that results from before there were versions are found.

    Returns:
        `{"versions": {"L2": 2}}`, or nothing where all are at their first.
    """
    bare: list[object] = []
    for part in parts:  # universal perturbations are of a ball, targets hold others
        held = part.modules() if isinstance(part, nn.Module) else (getattr(part, "ball", part),)
        bare.extend(held)
    found = {type(part).__name__: int(getattr(part, "VERSION", 1)) for part in bare}
    later = {name: version for name, version in found.items() if version > 1}
    return {"versions": later} if later else {}


def _threats(name: str, options: dict[str, str], budgets: Sequence[float]) -> dict[str, Threat]:
    """The threat at each budget."""
    if "eps" in options:
        budgets = [_typed("eps", part, float) for part in options.pop("eps").split("+")]
    universal = UNIVERSAL.get(options.pop("universal", "no"))
    if universal is None:
        raise UserError(f"universal is one of {', '.join(UNIVERSAL)}")
    # An unknown name is a clearer complaint than a missing budget: build once whatever the budgets.
    in_255 = _build(THREATS, name, {**options, "eps": "0"}).in_255
    if not budgets:
        raise UserError("no budget: give eps=")
    # By `repr`, which reads back to the same float: 1/255 has no short decimal form.
    unit, suffix = (255, "/255") if in_255 else (1, "")
    return {
        f"{eps:g}{suffix}": universal(_build(THREATS, name, {**options, "eps": repr(eps / unit)}))
        for eps in sorted(set(budgets))
    }


def _options(text: str) -> dict[str, str]:
    """{"steps": "20", "restarts": "2"} of "steps=20,restarts=2"."""
    options: dict[str, str] = {}
    for pair in filter(None, text.split(",")):
        key, equals, value = (part.strip() for part in pair.partition("="))
        if not equals or not value:
            raise UserError(f"{pair!r} is not option=value")
        if key in options:
            raise UserError(f"{key} is given twice")
        options[key] = value
    return options


def _build(registry: Mapping[str, Callable[..., Any]], name: str, options: dict[str, str]) -> Any:
    """The class of this name, built with the options in the types of its fields."""
    if name not in registry:
        raise UserError(f"unknown {name!r}; choose from {', '.join(registry)}")
    declared = {field.name: field.type for field in fields(registry[name])}  # type: ignore[arg-type]
    for key in options:
        if key not in declared:
            raise UserError(f"{name} has no option {key}; it has {', '.join(declared)}")
    return registry[name](
        **{key: _typed(key, text, declared[key]) for key, text in options.items()}
    )


def _typed(key: str, text: str, kind: Any) -> Any:
    try:
        return READERS[kind](text)
    except (ValueError, KeyError):
        wanted = getattr(kind, "__name__", str(kind))
        raise UserError(f"{key}={text} cannot be read as {wanted}") from None


def read_frames(text: str) -> Frames:
    """(0, 3) of "0+3"; a rule such as "first:2" as it is."""
    parts = text.split("+")
    return tuple(map(int, parts)) if all(part.isdigit() for part in parts) else text


READERS: dict[Any, Callable[[str], Any]] = {
    int: int,
    float: float,
    float | None: float,
    bool: {"true": True, "false": False}.__getitem__,
    str: str,
    Frames: read_frames,
}
