"""What a threat is: which perturbations of a clip are allowed, apart from what they achieve."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

Frames = str | Sequence[int]


class BudgetExceeded(AssertionError):
    """A perturbation left its threat: an error in an attack, never in its use."""


class Probe(Protocol):
    """How a threat may ask the attacked model which frames matter most."""

    def goal_at(self, clips: Tensor) -> Tensor:
        """What the attack maximises, [N], at these clips."""

    def gradient_at(self, clips: Tensor) -> Tensor:
        """Its gradient, with the shape of the clips."""


class Threat(Protocol):
    """Which perturbations are allowed. Everything a solver needs to know of them.

    A delta is what the solver moves: most often a change of every pixel, but also fewer numbers
    that many pixels (or many clips) share. `perturb` makes clips of it, `pull_back` is its adjoint.
    """

    @property
    def eps(self) -> float:
        """The size of the budget, in units of pixels in [0, 1]."""

    @property
    def frames(self) -> Frames:
        """Which frames may change."""

    @property
    def shared(self) -> bool:
        """Whether one delta of one row perturbs all clips."""

    def mask(self, clips: Tensor, seeds: Sequence[int], probe: Probe | None = None) -> Tensor:
        """What may change: bool, broadcastable to the delta, one row a clip (or one in all)."""

    def zero(self, clips: Tensor) -> Tensor:
        """The delta that changes nothing."""

    def start(self, clips: Tensor, mask: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """A random allowed delta; row i depends on `generators[i]` (CPU) and `clips[i]` alone."""

    def project(self, clips: Tensor, delta: Tensor, mask: Tensor) -> Tensor:
        """An allowed delta near the given one: in the budget, and clips + delta in [0, 1]."""

    def steepest_step(
        self, clips: Tensor, delta: Tensor, gradient: Tensor, step: float | Tensor, mask: Tensor
    ) -> Tensor:
        """The increment of size `step` (in the threat's norm) with the largest inner product."""

    def size(self, delta: Tensor) -> Tensor:
        """What eps bounds: a number for each row of delta (or for each frame of each row)."""

    def quantise(self, delta: Tensor) -> Tensor:
        """An allowed delta in whole steps of 1/255, near the given allowed one."""

    def perturb(self, clips: Tensor, delta: Tensor, seeds: Sequence[int]) -> Tensor:
        """The perturbed clips, in [0, 1]."""

    def pull_back(
        self, clips: Tensor, delta: Tensor, gradient: Tensor, seeds: Sequence[int]
    ) -> Tensor:
        """The gradient at the delta, from the gradient at the perturbed clips."""

    def verify(self, clean: Tensor, adversarial: Tensor, mask: Tensor) -> None:
        """Raise BudgetExceeded unless every adversarial clip is allowed, but for float rounding."""
