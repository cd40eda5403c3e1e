"""Auto-PGD (Croce & Hein 2020): PGD with momentum and a step that halves when progress stalls."""

import math
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor

from vidcsl.errors import UserError
from vidcsl.robustness.attacks.pgd import GradientAscent, State
from vidcsl.robustness.attacks.problem import SOLVERS, Problem, Worst, like_rows, per_row
from vidcsl.robustness.threats import L1

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

    Under L1, as published (Croce & Hein 2021), a run goes through balls of 3 eps, 2 eps and eps
    with 30, 30 and 40 per cent of the steps, each from where the one before ended: changes that are
    worth their budget are easier found in a wide ball. The step is the steepest in ball and box,
    where the paper's takes a number of pixels that it adapts.

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

    def __call__(self, problem: Problem) -> Tensor:
        """The worst delta found for each row, or the last."""
        if type(problem.threat) is not L1 or not self.keep_worst or self.steps < 4:
            return super().__call__(problem)
        clean = problem.zero()
        worst = Worst(clean, problem.evaluate(clean))
        wide = math.ceil(0.3 * self.steps)
        for restart in range(self.restarts):
            rows = worst.robust() if self.stop_when_fooled else problem.rows
            if len(rows) == 0:
                break
            part = problem.take(rows)
            delta = part.start(restart) if self.random_start or part.warm is not None else None
            for factor, steps in ((3, wide), (2, wide), (1, self.steps - 2 * wide)):
                ball = replace(part.threat, eps=factor * part.threat.eps)  # type: ignore[type-var]
                stop = self.stop_when_fooled and factor == 1
                run = replace(self, steps=steps, restarts=1, stop_when_fooled=stop)
                phase = replace(part, threat=ball, warm=delta, quantise=part.quantise)
                delta = GradientAscent.__call__(run, phase)
            assert delta is not None
            worst.offer(rows, delta, part.evaluate(delta))
        return worst.delta

    @cached_property
    def _since_last(self) -> dict[int, int]:
        """By checkpoint: how many steps since the last one."""
        return {now: now - before for before, now in pairwise([0, *checkpoints(self.steps)])}

    def begin(self, problem: Problem, delta: Tensor) -> State:
        """The best delta so far, with its gradient; and the progress since the last checkpoint."""
        nothing = like_rows(-torch.inf, delta)
        first = 1 if type(problem.threat) is L1 else 2  # in units of eps, as published
        return {
            "size": like_rows(first * problem.threat.eps, delta),
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
