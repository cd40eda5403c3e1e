"""The loop of every attack by gradients; its kinds differ in what they make of a gradient."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from vidcsl.errors import UserError
from vidcsl.robustness.attacks.problem import Problem, Verdict, Worst

State = dict[str, Tensor]
"""What a run remembers, by name; row r of each tensor belongs to row r of delta."""


def default_step_size(eps: float, steps: int) -> float:
    """A quarter of eps; more where so few steps could not cross the ball, whose width is 2 eps.

    On video classifiers the best step grows about linearly with eps, by 0.23-0.33 eps for eps from
    1/255 to 8/255. Madry et al. take 2.5 eps / steps.
    """
    return max(0.25 * eps, 2.5 * eps / max(steps, 1))


@dataclass(frozen=True)
class Ascent(ABC):
    """Ascent of the goal within the threat, by the gradient.

    Of all deltas seen on the way, none at all among them, each clip keeps the worst: more steps of
    the same size or more restarts never make the attack weaker.

    Args:
        steps: gradient steps in a run.
        restarts: runs, each from another random start.
        random_start: begin anywhere in the threat rather than at the clean clip.
        stop_when_fooled: leave a clip alone once it is misclassified, from the clean pass on. The
            robust accuracy is the same and most of the time is saved; set it False for clips that
            maximise the goal itself, as training and transfer want.
        keep_worst: False: the last delta of one run, whatever it does, as training wants it: two
            forward passes fewer, and rows whose goals depend on each other's deltas stay together.
    """

    steps: int = 20
    restarts: int = 1
    random_start: bool = True
    stop_when_fooled: bool = True
    keep_worst: bool = True

    def __post_init__(self) -> None:
        name = type(self).__name__
        if self.steps < 1 or self.restarts < 1:
            raise UserError(f"{name} needs 1 or more steps and restarts, not {self}")
        if self.restarts > 1 and not self.random_start:
            raise UserError(f"{name} restarts without random_start would all be the same run")
        if not self.keep_worst and (self.restarts > 1 or self.stop_when_fooled):
            raise UserError(
                f"{name} with keep_worst=false makes one whole run: restarts=1, "
                "stop_when_fooled=false"
            )

    @abstractmethod
    def begin(self, problem: Problem, delta: Tensor) -> State:
        """What a run remembers, at its start."""

    @abstractmethod
    def advance(
        self,
        problem: Problem,
        step: int,
        delta: Tensor,
        seen: tuple[Verdict, Tensor],
        state: State,
    ) -> Tensor:
        """The next delta after `step` steps, from the verdict and gradient at this one."""

    def __call__(self, problem: Problem) -> Tensor:
        """The worst delta found for each row, or the last."""
        if not self.keep_worst:
            return self._last(problem)
        clean = problem.zero()
        worst = Worst(clean, problem.judge(clean))
        for restart in range(self.restarts):
            rows = worst.standing() if self.stop_when_fooled else problem.rows
            if len(rows):
                self._run(problem.take(rows), restart, rows, worst)
        return worst.delta

    def _first(self, problem: Problem, restart: int) -> Tensor:
        """Where a run begins."""
        start = self.random_start or problem.warm is not None
        return problem.start(restart) if start else problem.zero()

    def _last(self, problem: Problem) -> Tensor:
        """Where a run ends."""
        delta = self._first(problem, 0)
        state = self.begin(problem, delta)
        for step in range(self.steps):
            delta = self.advance(problem, step, delta, problem.differentiate(delta), state)
        return delta

    def _run(self, part: Problem, restart: int, rows: Tensor, worst: Worst) -> None:
        """One run for these rows, which shows every delta on its way to `worst`."""
        delta = self._first(part, restart)
        state = self.begin(part, delta)
        for step in range(self.steps):
            verdict, gradient = part.differentiate(delta)
            worst.offer(rows, delta, verdict)
            if self.stop_when_fooled and verdict.fooled.any():
                right = (~verdict.fooled).nonzero()[:, 0]
                rows, part, delta = rows[right], part.take(right), delta[right]
                verdict, gradient = verdict.take(right), gradient[right]
                state = {name: values[right] for name, values in state.items()}
                if len(rows) == 0:
                    return
            delta = self.advance(part, step, delta, (verdict, gradient), state)
        worst.offer(rows, delta, part.judge(delta))


def per_row(values: Tensor, like: Tensor) -> Tensor:
    """One number a row, [R], shaped to broadcast with a delta."""
    return values.view(-1, *[1] * (like.ndim - 1))


def like_rows(value: float, delta: Tensor) -> Tensor:
    """The same number for each row, [R]."""
    return torch.full((len(delta),), value, dtype=delta.dtype, device=delta.device)
