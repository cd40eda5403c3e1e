"""FGSM, PGD, MI-FGSM and Adam."""

from dataclasses import dataclass

import torch
from torch import Tensor

from vidcsl.errors import UserError
from vidcsl.robustness.attacks.problem import (
    Ascent,
    Problem,
    State,
    Verdict,
    default_step_size,
    like_rows,
    per_row,
)

# ----------------------------------------------------------------------
# Steepest ascent: PGD (Madry et al. 2018), FGSM, and MI-FGSM (Dong et al. 2018).


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


# ----------------------------------------------------------------------
# Ascent by Adam (Kingma & Ba 2015), for deltas of few numbers (flicker) or few frames.

DECAYS = (0.9, 0.999)


@dataclass(frozen=True)
class Adam(Ascent):
    """Projected Adam, which lets each number of delta find its own step.

    Args:
        learning_rate: in units of pixels in [0, 1]; where None, a tenth of the change that spends
            all of eps when every allowed number changes alike.
        smoothness: weight of `unevenness`, which is subtracted from the goal: perturbations that
            are weaker and change less from frame to frame (0.5 in Pony et al. 2021).
    """

    steps: int = 100
    learning_rate: float | None = None
    smoothness: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.learning_rate is not None and not self.learning_rate > 0:
            raise UserError(f"Adam's learning_rate must be positive, not {self.learning_rate}")
        if not self.smoothness >= 0:
            raise UserError(f"Adam's smoothness must be 0 or more, not {self.smoothness}")

    def begin(self, problem: Problem, delta: Tensor) -> State:
        """Both moments, and each row's learning rate."""
        if self.learning_rate is None:
            even = torch.where(problem.mask, torch.ones_like(delta), 0.0)
            size = problem.threat.size(even).view(len(delta), -1).amax(dim=1)
            rate = 0.1 * problem.threat.eps / size.clamp_min(torch.finfo(delta.dtype).tiny)
        else:
            rate = like_rows(self.learning_rate, delta)
        return {"rate": rate, "mean": torch.zeros_like(delta), "square": torch.zeros_like(delta)}

    def advance(
        self,
        problem: Problem,
        step: int,
        delta: Tensor,
        seen: tuple[Verdict, Tensor],
        state: State,
    ) -> Tensor:
        """One projected step."""
        gradient = seen[1]
        if self.smoothness:
            gradient = gradient - self.smoothness * _gradient_of_unevenness(delta)
        # Adam's epsilon is absolute, and a confident model's gradients far below it.
        largest = gradient.flatten(1).abs().amax(dim=1).clamp_min(torch.finfo(delta.dtype).tiny)
        gradient = gradient / per_row(largest, delta)
        for name, decay, new in zip(
            ("mean", "square"), DECAYS, (gradient, gradient.square()), strict=True
        ):
            state[name] = decay * state[name] + (1 - decay) * new
        mean, square = (
            state[name] / (1 - decay ** (step + 1))
            for name, decay in zip(("mean", "square"), DECAYS, strict=True)
        )
        move = per_row(state["rate"], delta) * mean / (square.sqrt() + 1e-8)
        return problem.project(delta + move)


def unevenness(delta: Tensor) -> Tensor:
    """How strong a change is and how unsteady in time, `[R, 3, T, ...]` -> `[R]`.

    Mean square of delta, of its first and of its second difference (Pony et al. 2021). Of images:
    the first alone.
    """
    parts = [delta]
    if delta.ndim == 5:
        parts += [delta.diff(dim=2, n=n) for n in (1, 2) if delta.shape[2] > n]
    return torch.stack([part.square().flatten(1).mean(dim=1) for part in parts]).sum(dim=0)


def _gradient_of_unevenness(delta: Tensor) -> Tensor:
    with torch.enable_grad():
        delta = delta.detach().requires_grad_(True)
        return torch.autograd.grad(unevenness(delta).sum(), delta)[0]
