"""Steepest ascent: PGD (Madry et al. 2018), FGSM, and MI-FGSM (Dong et al. 2018)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from vidcsl.errors import UserError
from vidcsl.robustness.attacks.ascent import Ascent, State, default_step_size, per_row
from vidcsl.robustness.attacks.problem import Problem, Verdict


@dataclass(frozen=True)
class PGD(Ascent):
    """Steepest ascent of the goal, projected back into the threat after each step.

    Args:
        step_size: in units of eps's norm; `default_step_size` where it is None.
    """

    step_size: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.step_size is not None and not self.step_size > 0:
            raise UserError(f"{type(self).__name__}'s step_size must be positive: {self}")

    def size_of_step(self, eps: float) -> float:
        """The step in units of eps's norm."""
        return default_step_size(eps, self.steps) if self.step_size is None else self.step_size

    def begin(self, _problem: Problem, _delta: Tensor) -> State:
        """Nothing is remembered."""
        return {}

    def advance(
        self,
        problem: Problem,
        _step: int,
        delta: Tensor,
        seen: tuple[Verdict, Tensor],
        _state: State,
    ) -> Tensor:
        """One projected step along the gradient."""
        return problem.climb(delta, self.size_of_step(problem.threat.eps), seen[1])


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

    def begin(self, _problem: Problem, delta: Tensor) -> State:
        """No momentum."""
        return {"momentum": torch.zeros_like(delta)}

    def advance(
        self,
        problem: Problem,
        step: int,
        delta: Tensor,
        seen: tuple[Verdict, Tensor],
        state: State,
    ) -> Tensor:
        """One projected step along the momentum."""
        # The mean is over all dimensions of a clip, its frames among them.
        mean = seen[1].abs().flatten(1).mean(dim=1)
        normalised = seen[1] / per_row(mean.clamp_min(torch.finfo(mean.dtype).tiny), delta)
        state["momentum"] = self.decay * state["momentum"] + normalised
        return super().advance(problem, step, delta, (seen[0], state["momentum"]), state)


@dataclass(frozen=True)
class FGSM(PGD):
    """One step to the border of the threat (Goodfellow et al. 2015), from the clean clip."""

    steps: int = 1
    random_start: bool = False

    def size_of_step(self, eps: float) -> float:
        """All of eps."""
        return eps if self.step_size is None else self.step_size
