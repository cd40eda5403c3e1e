"""Goals: what an attack maximises, a number for each clip, and when it is done with a clip."""

from collections.abc import Callable
from typing import cast

from torch import Tensor

from vidcsl.errors import UserError
from vidcsl.robustness.attacks.goals.classes import (
    Targeted,
    Untargeted,
    cross_entropy,
    dlr,
    hinge,
    margin,
    targeted_cross_entropy,
    targeted_dlr,
    targeted_margin,
)
from vidcsl.robustness.attacks.goals.features import (
    ContrastiveLoss,
    FeatureDistance,
    NeighbourSwitch,
)
from vidcsl.robustness.attacks.goals.goal import Goal

GOALS: dict[str, Goal] = {
    "cross_entropy": Untargeted(cross_entropy),
    "margin": Untargeted(margin),
    "dlr": Untargeted(dlr, classes=3),
    "hinge": Untargeted(hinge),
    "targeted_cross_entropy": Targeted(targeted_cross_entropy),
    "targeted_margin": Targeted(targeted_margin),
    "targeted_dlr": Targeted(targeted_dlr, classes=4),
    "feature_distance": FeatureDistance(),
}


Function = Callable[[Tensor, Tensor], Tensor]


def goal_of(goal: str | Goal | Function) -> Goal:
    """A goal by its name, by a function (logits [N, K], labels [N]) -> [N], or itself."""
    if isinstance(goal, str):
        if goal not in GOALS:
            raise UserError(f"unknown attack goal {goal!r}: choose from {', '.join(sorted(GOALS))}")
        return GOALS[goal]
    return cast(Goal, goal) if hasattr(goal, "prepare") else Untargeted(goal)


__all__ = [
    "GOALS",
    "ContrastiveLoss",
    "FeatureDistance",
    "Goal",
    "NeighbourSwitch",
    "Targeted",
    "Untargeted",
    "cross_entropy",
    "dlr",
    "goal_of",
    "hinge",
    "margin",
    "targeted_cross_entropy",
    "targeted_dlr",
    "targeted_margin",
]
