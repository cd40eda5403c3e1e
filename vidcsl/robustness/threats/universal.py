"""Universal perturbations: one delta for all clips, at a fixed or at any moment of each."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from vidcsl.errors import UserError
from vidcsl.robustness.threats.masks import Frames, Probe
from vidcsl.robustness.threats.threat import Ball
from vidcsl.seeding import seed_of


@dataclass(frozen=True)
class Universal:
    """One delta `[1, ...]` in the budget of `ball`, added to every clip (Moosavi-Dezfooli 2017).

    The box cuts the clips, not the delta.

    Args:
        ball: budget of the delta, its frames and its region.
        cyclic: each clip meets the delta turned in time by a number of frames that its seed draws:
            such a delta needs no synchronisation with the video (Li et al. 2019).
    """

    ball: Ball
    cyclic: bool = False

    shared = True

    def __post_init__(self) -> None:
        if self.cyclic and self.ball.frames != "all":
            raise UserError(f"a cyclic perturbation changes all frames, not {self.ball.frames!r}")

    @property
    def eps(self) -> float:
        """The radius of the ball."""
        return self.ball.eps

    @property
    def frames(self) -> Frames:
        """Those of the ball."""
        return self.ball.frames

    @cached_property
    def _half(self) -> Ball:
        """The ball at half its size: between -1 and 1 is, halved, within the box around grey."""
        return replace(self.ball, eps=self.ball.eps / 2)

    def _grey(self, clips: Tensor) -> Tensor:
        return torch.full_like(clips[:1], 0.5)

    def mask(self, clips: Tensor, seeds: Sequence[int], probe: Probe | None = None) -> Tensor:
        """What may change, one row: chosen for the first clip."""
        if clips.ndim != 5 and self.cyclic:
            raise UserError("a cyclic perturbation needs clips [N, 3, T, H, W], not images")
        return self.ball.mask(clips[:1], seeds[:1], probe)

    def zero(self, clips: Tensor) -> Tensor:
        """The delta that changes nothing."""
        return self.ball.zero(clips[:1])

    def start(self, clips: Tensor, mask: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """A random draw of the ball, from the first generator."""
        return 2 * self._half.start(self._grey(clips), mask, generators[:1])

    def project(self, clips: Tensor, delta: Tensor, mask: Tensor) -> Tensor:
        """The nearest point of the ball, within [-1, 1]."""
        return 2 * self._half.project(self._grey(clips), delta / 2, mask)

    def steepest_step(
        self, clips: Tensor, delta: Tensor, gradient: Tensor, step: float | Tensor, mask: Tensor
    ) -> Tensor:
        """That of the ball."""
        grey = self._grey(clips)
        return 2 * self._half.steepest_step(grey, delta / 2, gradient, step / 2, mask)

    def size(self, delta: Tensor) -> Tensor:
        """That of the ball."""
        return self.ball.size(delta)

    def quantise(self, clips: Tensor, delta: Tensor) -> Tensor:
        """That of the ball, without a clip's box."""
        return self.ball.in_levels(delta, -1.0, 1.0)

    def perturb(self, clips: Tensor, delta: Tensor, seeds: Sequence[int]) -> Tensor:
        """Every clip with the delta, turned in time where it is cyclic."""
        return (clips + self._spread(delta, seeds)).clamp(0, 1)

    def pull_back(
        self, clips: Tensor, delta: Tensor, gradient: Tensor, seeds: Sequence[int]
    ) -> Tensor:
        """The sum over the clips, each turned back, without the pixels that the box holds."""
        spread = self._spread(delta, seeds)
        per_clip = self.ball.pull_back(clips, spread, gradient, seeds)
        moved = clips + spread
        if per_clip.shape == moved.shape:
            per_clip = per_clip * ((moved >= 0) & (moved <= 1))
        return self._turn(per_clip, seeds, back=True).sum(dim=0, keepdim=True)

    def verify(self, clean: Tensor, adversarial: Tensor, mask: Tensor) -> None:
        """Raise BudgetExceeded unless every clip keeps the budget of the ball."""
        self.ball.verify(clean, adversarial, mask)

    def _spread(self, delta: Tensor, seeds: Sequence[int]) -> Tensor:
        return self._turn(delta.expand(len(seeds), *delta.shape[1:]), seeds)

    def _turn(self, delta: Tensor, seeds: Sequence[int], *, back: bool = False) -> Tensor:
        """Each row rolled along its frames, [N, C, T, ...]."""
        if not self.cyclic or len(seeds) == 0:
            return delta
        frames, sign = delta.shape[2], -1 if back else 1
        # By the seed alone, so that a clip meets the delta at one shift in every pass.
        shifts = [sign * (seed_of(seed, "cyclic shift") % frames) for seed in seeds]
        return torch.stack(
            [row.roll(shift, dims=1) for row, shift in zip(delta, shifts, strict=True)]
        )
