"""Auto-PGD (Croce & Hein 2020): PGD with momentum and a step that halves when progress stalls."""

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor

from vidcsl.errors import UserError
from vidcsl.robustness.attacks.pgd import GradientAscent, State
from vidcsl.robustness.attacks.problem import SOLVERS, Problem, like_rows, per_row

MOMENTUM = 0.75  # weight of the new step; the rest repeats the last one


def checkpoints(steps: int) -> list[int]:
    """The steps at which progress is checked: 22, 41, 57, 70, 80, 87, 93, 99 of 100.

    Fractions p_0 = 0, p_1 = 0.22, p_{j+1} = p_j + max(p_j - p_{j-1} - 0.03, 0.06), rounded up.
    """
    # In whole hundredths: sums of 0.03 and 0.06 in floats would round up to other steps.
    hundredths, width = [0, 22], 22
    while hundredths[-1] < 100:
        width = max(width - 3, 6)
        hundredths.append(hundredths[-1] + width)
    found = (math.ceil(part * steps / 100) for part in hundredths[1:])
    return sorted({step for step in found if step < steps})


@SOLVERS.register(
    "apgd", "momentum, steps that halve by the published schedule (Croce & Hein 2020)"
)
@dataclass(frozen=True)
class APGD(GradientAscent):
    """Steps of 2 eps at first; no step size to choose.

    Args:
        rho: halve the step where fewer than this ratio of the steps since the last checkpoint
            raised the goal; and where neither the step nor the best goal changed since then.
    """

    steps: int = 100
    rho: float = 0.75

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.rho <= 1:
            raise UserError(f"APGD's rho must be from 0 to 1, not {self.rho}")

    @cached_property
    def _since_last(self) -> dict[int, int]:
        """By checkpoint: how many steps since the last one."""
        return {now: now - before for before, now in pairwise([0, *checkpoints(self.steps)])}

    def begin(self, problem: Problem, delta: Tensor) -> State:
        """The best delta so far, with its gradient; and the progress since the last checkpoint."""
        nothing = like_rows(-torch.inf, delta)
        return {
            "size": like_rows(2 * problem.threat.eps, delta),
            "previous": delta,
            "best": delta,
            "best_gradient": torch.zeros_like(delta),
            "best_goal": nothing,
            "goal": nothing,
            "raised": torch.zeros_like(nothing),
            "best_at_checkpoint": nothing,
            "halved": torch.zeros_like(nothing, dtype=torch.bool),
        }

    def advance(
        self,
        problem: Problem,
        step: int,
        delta: Tensor,
        goal: Tensor,
        gradient: Tensor,
        state: State,
    ) -> Tensor:
        """One step of steepest ascent, mixed with the last one."""
        goal = goal.to(delta.dtype)
        if step > 0:
            state["raised"] = state["raised"] + (goal > state["goal"])
        state["goal"] = goal
        better = goal > state["best_goal"]
        state["best"] = torch.where(per_row(better, delta), delta, state["best"])
        state["best_gradient"] = torch.where(
            per_row(better, delta), gradient, state["best_gradient"]
        )
        state["best_goal"] = torch.where(better, goal, state["best_goal"])
        if step in self._since_last:
            # Rows whose step is halved start again at their best.
            back = per_row(self.halve(state, self._since_last[step]), delta)
            delta = torch.where(back, state["best"], delta)
            gradient = torch.where(back, state["best_gradient"], gradient)
        size = per_row(state["size"], delta)
        ascent = problem.threat.steepest_step(problem.clips, delta, gradient, size, problem.mask)
        onward = problem.project(delta + ascent)
        if step > 0:
            mixed = MOMENTUM * (onward - delta) + (1 - MOMENTUM) * (delta - state["previous"])
            onward = problem.project(delta + mixed)
        state["previous"] = delta
        return onward

    def halve(self, state: State, steps: int) -> Tensor:
        """Halve the step of the rows that made little progress in `steps` steps: bool [R]."""
        few = state["raised"] < self.rho * steps
        stalled = ~state["halved"] & (state["best_goal"] <= state["best_at_checkpoint"])
        halved = few | stalled
        state["size"] = torch.where(halved, state["size"] / 2, state["size"])
        state["halved"], state["best_at_checkpoint"] = halved, state["best_goal"]
        state["raised"] = torch.zeros_like(state["raised"])
        return halved
