"""Ascent by Adam (Kingma & Ba 2015), for deltas of few numbers (flicker) or few frames."""

from dataclasses import dataclass

import torch
from torch import Tensor

from vidcsl.errors import UserError
from vidcsl.robustness.attacks.pgd import GradientAscent, State
from vidcsl.robustness.attacks.problem import SOLVERS, Problem, like_rows, per_row
from vidcsl.robustness.threats import Linf, Threat, Universal

MEAN_DECAY, SQUARE_DECAY = 0.9, 0.999  # beta_1 and beta_2 of the paper


@SOLVERS.register("adam", "projected Adam, with an optional penalty on flicker")
@dataclass(frozen=True)
class Adam(GradientAscent):
    """Projected Adam, which lets each number of delta find its own step: for linf and flicker.

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

    def refuses(self, threat: Threat) -> str | None:
        """Why a threat cannot be searched.

        Steps of like size in every number lead to the optimum where each has a budget of its own.
        Under L2, L1 and l2,1 they end at 82, 38 and 78 per cent of it, even on a linear model.
        """
        ball = threat.ball if isinstance(threat, Universal) else threat
        if isinstance(ball, Linf):  # of which flicker is a kind
            return None
        return f"adam supports linf and flicker, not {threat}: use pgd or apgd"

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
        goal: Tensor,
        gradient: Tensor,
        state: State,
    ) -> Tensor:
        """One projected step."""
        if self.smoothness:
            with torch.enable_grad():
                moved = delta.detach().requires_grad_(True)
                (penalty,) = torch.autograd.grad(unevenness(moved).sum(), moved)
            gradient = gradient - self.smoothness * penalty
        # Adam's epsilon is absolute, and a confident model's gradients far below it.
        largest = gradient.flatten(1).abs().amax(dim=1).clamp_min(torch.finfo(delta.dtype).tiny)
        gradient = gradient / per_row(largest, delta)
        state["mean"] = MEAN_DECAY * state["mean"] + (1 - MEAN_DECAY) * gradient
        state["square"] = SQUARE_DECAY * state["square"] + (1 - SQUARE_DECAY) * gradient.square()
        mean = state["mean"] / (1 - MEAN_DECAY ** (step + 1))
        square = state["square"] / (1 - SQUARE_DECAY ** (step + 1))
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
