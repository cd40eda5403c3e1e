"""Projected gradient descent (Madry et al. 2018), and random noise as the floor under it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from vidcsl.errors import UserError
from vidcsl.robustness.attacks.problem import Problem, Worst


def default_step_size(eps: float, steps: int) -> float:
    """A quarter of eps; more where so few steps could not cross the ball, whose width is 2 eps.

    On video classifiers the best step grows about linearly with eps, by 0.23-0.33 eps for eps from
    1/255 to 8/255. Madry et al. take 2.5 eps / steps.
    """
    return max(0.25 * eps, 2.5 * eps / max(steps, 1))


@dataclass(frozen=True)
class PGD:
    """Steepest ascent of the goal, projected back into the threat after each step.

    Of all deltas seen on the way, none at all among them, each clip keeps the worst: at one
    step_size, neither more steps nor more restarts can make the attack weaker.

    Args:
        steps: gradient steps in a run.
        step_size: in units of eps's norm; `default_step_size` where it is None.
        restarts: runs, each from another random start.
        random_start: begin anywhere in the threat rather than at the clean clip.
        stop_when_fooled: leave a clip alone once it is misclassified, from the clean pass on. The
            robust accuracy is the same and most of the time is saved; set it False for clips that
            maximise the goal itself, as training and transfer want.
    """

    steps: int = 20
    step_size: float | None = None
    restarts: int = 1
    random_start: bool = True
    stop_when_fooled: bool = True

    def __post_init__(self) -> None:
        if self.steps < 1 or self.restarts < 1:
            raise UserError(f"PGD needs 1 or more steps and restarts, not {self}")
        if self.restarts > 1 and not self.random_start:
            raise UserError("PGD restarts without random_start would all be the same run")
        if self.step_size is not None and not self.step_size > 0:
            raise UserError(f"PGD's step_size must be positive, not {self.step_size}")

    def __call__(self, problem: Problem) -> Tensor:
        """The worst delta found for each clip."""
        clean = torch.zeros_like(problem.clips)
        worst = Worst(clean, problem.judge(clean))
        for restart in range(self.restarts):
            rows = _rows(~worst.fooled | (not self.stop_when_fooled))
            self._run(problem, restart, rows, worst)
        return worst.delta

    def _run(self, problem: Problem, restart: int, rows: Tensor, worst: Worst) -> None:
        """One run for these rows, which shows every clip on its way to `worst`."""
        eps = problem.threat.eps
        step = default_step_size(eps, self.steps) if self.step_size is None else self.step_size
        part = problem.take(rows)
        delta = part.start(restart) if self.random_start else torch.zeros_like(part.clips)
        for _ in range(self.steps):
            if len(rows) == 0:
                return
            verdict, gradient = part.differentiate(delta)
            worst.offer(rows, delta, verdict)
            delta = part.climb(delta, step, gradient)
            if self.stop_when_fooled and verdict.fooled.any():
                right = _rows(~verdict.fooled)
                rows, delta, part = rows[right], delta[right], part.take(right)
        if len(rows):
            worst.offer(rows, delta, part.judge(delta))


def _rows(chosen: Tensor) -> Tensor:
    return chosen.nonzero()[:, 0]


@dataclass(frozen=True)
class RandomNoise:
    """The worst of some random draws from the threat: what any attack must beat.

    With one draw, its accuracy is simply that under noise: a clip that noise puts right counts.
    """

    draws: int = 1

    def __post_init__(self) -> None:
        if self.draws < 1:
            raise UserError(f"random noise needs 1 or more draws, not {self.draws}")

    def __call__(self, problem: Problem) -> Tensor:
        """The worst delta drawn for each clip."""
        rows = torch.arange(len(problem.clips), device=problem.clips.device)
        delta = problem.start(0)
        worst = Worst(delta, problem.judge(delta))
        for draw in range(1, self.draws):
            delta = problem.start(draw)
            worst.offer(rows, delta, problem.judge(delta))
        return worst.delta
