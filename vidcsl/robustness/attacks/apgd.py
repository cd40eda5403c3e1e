"""Auto-PGD (Croce & Hein 2020): PGD with momentum and a step that halves when progress stalls."""

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor

from vidcsl.errors import UserError
from vidcsl.robustness.attacks.problem import Ascent, Problem, State, Verdict, like_rows, per_row

MOMENTUM = 0.75  # weight of the new step; the rest repeats the last one


def checkpoints(steps: int) -> list[int]:
    """The steps after which progress is looked at: 22, 41, 57, 70, 80, 87, 93, 99 of 100.

    Shares p_0 = 0, p_1 = 0.22, p_{j+1} = p_j + max(p_j - p_{j-1} - 0.03, 0.06), rounded up.
    """
    hundredths, width = [0, 22], 22
    while hundredths[-1] < 100:
        width = max(width - 3, 6)
        hundredths.append(hundredths[-1] + width)
    found = (math.ceil(part * steps / 100) for part in hundredths[1:])
    return sorted({step for step in found if step < steps})


@dataclass(frozen=True)
class APGD(Ascent):
    """Steps of 2 eps at first; no step size to choose.

    Args:
        rho: halve the step where fewer than this share of the steps since the last look raised the
            goal; and where neither the step nor the best goal changed since then.
    """

    steps: int = 100
    rho: float = 0.75

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.rho <= 1:
            raise UserError(f"APGD's rho must be from 0 to 1, not {self.rho}")

    @cached_property
    def _looks(self) -> dict[int, int]:
        """How many steps since the last look, by step."""
        return {now: now - before for before, now in pairwise([0, *checkpoints(self.steps)])}

    def begin(self, problem: Problem, delta: Tensor) -> State:
        """The best so far, with its gradient; and how it went since the last look."""
        nothing = like_rows(-torch.inf, delta)
        return {
            "size": like_rows(2 * problem.threat.eps, delta),
            "previous": delta,
            "best": delta,
            "best_gradient": torch.zeros_like(delta),
            "best_goal": nothing,
            "goal": nothing,
            "raised": torch.zeros_like(nothing),
            "best_at_look": nothing,
            "halved": torch.zeros_like(nothing, dtype=torch.bool),
        }

    def advance(
        self,
        problem: Problem,
        step: int,
        delta: Tensor,
        seen: tuple[Verdict, Tensor],
        state: State,
    ) -> Tensor:
        """One step of ascent, mixed with the last one."""
        goal, gradient = seen[0].goal.to(delta.dtype), seen[1]
        if step > 0:
            state["raised"] = state["raised"] + (goal > state["goal"])
        state["goal"] = goal
        _keep_best(state, delta, goal, gradient)
        if step in self._looks:
            back = per_row(self._look(state, self._looks[step]), delta)
            delta = torch.where(back, state["best"], delta)
            gradient = torch.where(back, state["best_gradient"], gradient)
        onward = problem.climb(delta, per_row(state["size"], delta), gradient)
        if step > 0:
            mixed = MOMENTUM * (onward - delta) + (1 - MOMENTUM) * (delta - state["previous"])
            onward = problem.project(delta + mixed)
        state["previous"] = delta
        return onward

    def _look(self, state: State, steps: int) -> Tensor:
        """Halve the step of the rows that need it, bool [R], which begin again at their best."""
        few = state["raised"] < self.rho * steps
        stalled = ~state["halved"] & (state["best_goal"] <= state["best_at_look"])
        halved = few | stalled
        state["size"] = torch.where(halved, state["size"] / 2, state["size"])
        state["halved"], state["best_at_look"] = halved, state["best_goal"]
        state["raised"] = torch.zeros_like(state["raised"])
        return halved


def _keep_best(state: State, delta: Tensor, goal: Tensor, gradient: Tensor) -> None:
    better = goal > state["best_goal"]
    wide = per_row(better, delta)
    state["best"] = torch.where(wide, delta, state["best"])
    state["best_gradient"] = torch.where(wide, gradient, state["best_gradient"])
    state["best_goal"] = torch.where(better, goal, state["best_goal"])
