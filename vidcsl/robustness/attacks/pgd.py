"""PGD, FGSM and MI-FGSM; and the loop that all attacks by gradients share."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from vidcsl.errors import UserError
from vidcsl.robustness.attacks.problem import SOLVERS, Problem, Worst, per_row
from vidcsl.robustness.threats import L1

State = dict[str, Tensor]
"""What a run remembers, by name; row r of each tensor belongs to row r of delta."""


@dataclass(frozen=True)
class GradientAscent(ABC):
    """The loop of every attack by gradients; subclasses say how to step.

    Of all deltas seen on the way, the clean clip included, each clip keeps the worst: more steps of
    the same size or more restarts never make the attack weaker.

    Args:
        steps: gradient steps in a run.
        restarts: runs, each from another random start.
        random_start: start anywhere in the threat rather than at the clean clip.
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

    def begin(self, problem: Problem, delta: Tensor) -> State:
        """What a run remembers, at its start; by default nothing."""
        return {}

    @abstractmethod
    def advance(
        self,
        problem: Problem,
        step: int,
        delta: Tensor,
        goal: Tensor,
        gradient: Tensor,
        state: State,
    ) -> Tensor:
        """The next delta, after `step` steps.

        Args:
            problem: of the R rows that are still attacked.
            step: from 0.
            delta: the current one.
            goal: at delta, [R].
            gradient: of the goal at delta, with the shape of delta.
            state: see `begin`; to be updated in place.
        """

    def __call__(self, problem: Problem) -> Tensor:
        """The worst delta found for each row, or the last."""
        clean = problem.zero()
        # The clean clip counts as a delta, too: what is misclassified already needs no attack.
        worst = Worst(clean, problem.evaluate(clean)) if self.keep_worst else None
        rows, part, delta = problem.rows, problem, clean
        for restart in range(self.restarts):
            if worst is not None:
                rows = worst.robust() if self.stop_when_fooled else problem.rows
                part = problem.take(rows)
                if len(rows) == 0:
                    break
            # What a smaller budget found is a better start than the clean clip.
            random_start = self.random_start or problem.warm is not None
            delta = part.start(restart) if random_start else part.zero()
            state = self.begin(part, delta)
            for step in range(self.steps):
                found, gradient = part.differentiate(delta)
                if worst is not None:
                    worst.offer(rows, delta, found)
                if self.stop_when_fooled and found.fooled.any():
                    # Fooled clips leave the batch: what is left is smaller, and so is each pass.
                    left = (~found.fooled).nonzero()[:, 0]
                    rows, part, delta = rows[left], part.take(left), delta[left]
                    found, gradient = found.take(left), gradient[left]
                    state = {name: values[left] for name, values in state.items()}
                    if len(rows) == 0:
                        break
                delta = self.advance(part, step, delta, found.goal, gradient, state)
            # Each pass evaluates the delta before its step, so the last one has not been seen yet.
            if worst is not None and len(rows):
                worst.offer(rows, delta, part.evaluate(delta))
        return delta if worst is None else worst.delta


def default_step_size(eps: float, steps: int, share: float = 0.25) -> float:
    """A quarter of eps (of L1 a tenth); more where so few steps could not cross the ball.

    The ball is 2 eps wide. On video classifiers the best step grows about linearly with eps, by
    0.23-0.33 eps for eps from 1/255 to 8/255. Madry et al. take 2.5 eps / steps.
    """
    return max(share * eps, 2.5 * eps / max(steps, 1))


@SOLVERS.register("pgd", "projected gradient ascent, with restarts (Madry et al. 2018)")
@dataclass(frozen=True)
class PGD(GradientAscent):
    """Steepest ascent of the goal, projected back into the threat after each step.

    Args:
        step_size: in units of eps's norm; `default_step_size` where it is None (under L1 it falls
            to nothing over the second half of the run).
    """

    step_size: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.step_size is not None and not self.step_size > 0:
            raise UserError(f"{type(self).__name__}'s step_size must be positive: {self}")

    def size_of_step(self, eps: float) -> float:
        """The step in units of eps's norm."""
        return default_step_size(eps, self.steps) if self.step_size is None else self.step_size

    def advance(
        self,
        problem: Problem,
        step: int,
        delta: Tensor,
        goal: Tensor,
        gradient: Tensor,
        state: State,
    ) -> Tensor:
        """One projected step along the gradient."""
        threat, size = problem.threat, self.size_of_step(problem.threat.eps)
        if type(threat) is L1 and type(self) is PGD and self.step_size is None:
            # What a step adds, the projection onto the L1 ball takes back from all pixels alike, so
            # that steps of one size end beside the optimum: they shrink in the second half.
            size = default_step_size(threat.eps, self.steps, share=0.1)
            size *= min(1.0, 2 * (1 - step / self.steps))
        # The steepest direction depends on the norm: for Linf it is the gradient's sign, for L2
        # the gradient itself, for L1 the few pixels with the largest gradients.
        ascent = threat.steepest_step(problem.clips, delta, gradient, size, problem.mask)
        return threat.project(problem.clips, delta + ascent, problem.mask)


@SOLVERS.register("mifgsm", "with momentum (Dong et al. 2018)")
@dataclass(frozen=True)
class MomentumPGD(PGD):
    """MI-FGSM: steps along a running sum of gradients, each divided by its mean absolute value.

    As published: from the clean clip, with steps of eps / steps.

    Args:
        decay: weight of the sum so far.
    """

    random_start: bool = False
    decay: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.decay >= 0:
            raise UserError(f"momentum's decay must be 0 or more, not {self.decay}")

    def size_of_step(self, eps: float) -> float:
        """The step in units of eps's norm."""
        return eps / self.steps if self.step_size is None else self.step_size

    def begin(self, problem: Problem, delta: Tensor) -> State:
        """No momentum."""
        return {"momentum": torch.zeros_like(delta)}

    def advance(
        self,
        problem: Problem,
        step: int,
        delta: Tensor,
        goal: Tensor,
        gradient: Tensor,
        state: State,
    ) -> Tensor:
        """One projected step along the momentum."""
        # The mean is over all dimensions of a clip, its frames among them.
        mean = gradient.abs().flatten(1).mean(dim=1)
        # Where the gradient vanishes, zero by zero would turn the momentum into NaN for good.
        normalised = gradient / per_row(mean.clamp_min(torch.finfo(mean.dtype).tiny), delta)
        state["momentum"] = self.decay * state["momentum"] + normalised
        return super().advance(problem, step, delta, goal, state["momentum"], state)


@SOLVERS.register("fgsm", "one step to the border of the threat (Goodfellow et al. 2015)")
@dataclass(frozen=True)
class FGSM(PGD):
    """One step to the border of the threat (Goodfellow et al. 2015), from the clean clip."""

    steps: int = 1
    random_start: bool = False

    def size_of_step(self, eps: float) -> float:
        """All of eps."""
        return eps if self.step_size is None else self.step_size
