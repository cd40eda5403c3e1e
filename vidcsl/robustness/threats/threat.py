"""What a threat is, and what the balls of all norms share: mask, box, rounding, the final check.

A threat says which perturbations of a clip are allowed, apart from what they achieve.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from vidcsl.errors import UserError
from vidcsl.registry import Registry
from vidcsl.robustness.threats.masks import (
    Frames,
    Probe,
    check_frames,
    check_region,
    choose_frames,
    choose_region,
    needs_model,
    search_frames,
)

LEVEL = 1 / 255  # one step of an 8-bit pixel
SCALINGS = 24  # halvings of the range in which a scale is sought: to seven digits
Fill = Callable[[Tensor, torch.Generator], object]

THREATS: Registry[type["Ball"]] = Registry(
    "ATTACK.RUNS", default="linf", meaning="which perturbations are allowed"
)


class BudgetExceeded(AssertionError):
    """A perturbation left its threat: an error in an attack, never in its use."""


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

    def quantise(self, clips: Tensor, delta: Tensor) -> Tensor:
        """An allowed delta in whole steps of 1/255, near the given allowed one, of 8-bit clips."""

    def perturb(self, clips: Tensor, delta: Tensor, seeds: Sequence[int]) -> Tensor:
        """The perturbed clips, in [0, 1]."""

    def pull_back(
        self, clips: Tensor, delta: Tensor, gradient: Tensor, seeds: Sequence[int]
    ) -> Tensor:
        """The gradient at the delta, from the gradient at the perturbed clips."""

    def verify(self, clean: Tensor, adversarial: Tensor, mask: Tensor) -> None:
        """Raise BudgetExceeded unless every adversarial clip is allowed, but for float rounding."""


@dataclass(frozen=True)
class Ball(ABC):
    """Perturbations of bounded norm, in chosen frames and a chosen part of each frame.

    Args:
        eps: radius, in units of pixels in [0, 1].
        frames: which frames may change, see `choose_frames` and `search_frames`.
        region: which part of them may change, see `choose_region`.
        over: "clip": eps is the budget of the clip; "frame": eps is the budget of each frame.
    """

    eps: float
    frames: Frames = "all"
    region: str = "all"
    over: str = "clip"

    # Raised whenever attacks under this threat begin to give other numbers: results that were
    # cached before are then not taken for new ones (see `attacks.specs.versions`).
    VERSION: ClassVar[int] = 1

    shared = False  # a delta of its own for each clip, see `Threat.shared`
    in_255 = False  # whether a config gives eps in 1/255, as pixel values are given

    def __post_init__(self) -> None:
        if not (self.eps >= 0 and math.isfinite(self.eps)):
            raise UserError(f"eps must be a finite number from 0, not {self.eps}")
        if self.over not in ("clip", "frame"):
            raise UserError(f"a budget is over clip or frame, not {self.over!r}")
        check_frames(self.frames)
        check_region(self.region)

    @abstractmethod
    def start(self, clips: Tensor, mask: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """A random draw of the ball, cut to the box."""

    @abstractmethod
    def project(self, clips: Tensor, delta: Tensor, mask: Tensor) -> Tensor:
        """An allowed delta near the given one."""

    @abstractmethod
    def steepest_step(
        self, clips: Tensor, delta: Tensor, gradient: Tensor, step: float | Tensor, mask: Tensor
    ) -> Tensor:
        """The increment of size `step` with the largest inner product."""

    @abstractmethod
    def size(self, delta: Tensor) -> Tensor:
        """What eps bounds: `[G]`, a number for each clip, or each frame of each clip."""

    @abstractmethod
    def rounding(self, delta: Tensor) -> float:
        """By how much float arithmetic may let the size exceed eps."""

    def mask(self, clips: Tensor, seeds: Sequence[int], probe: Probe | None = None) -> Tensor:
        """What may change: bool, [N, 1, T or 1, H or 1, W or 1], for images without T."""
        if clips.ndim == 4:
            if self.frames != "all":
                raise UserError(f"frames {self.frames!r} need clips [N, 3, T, H, W], not images")
            region = choose_region(self.region, (1, *clips.shape[2:]), seeds)
            return region[:, :, 0].to(clips.device)
        region = choose_region(self.region, clips.shape[2:], seeds).to(clips.device)
        if needs_model(self.frames):
            check_frames(self.frames, clips.shape[2])
            if probe is None:
                raise UserError(
                    f"frames {self.frames!r} are chosen by a model: pass the attacked one as probe"
                )

            def change(gradient: Tensor, frames: Tensor) -> Tensor:
                mask = frames[:, None, :, None, None] & region
                nothing = torch.zeros_like(clips)
                step = self.steepest_step(clips, nothing, gradient, self.eps, mask)
                return self.project(clips, step, mask)

            frames = search_frames(str(self.frames), clips, probe, change)
        else:
            frames = choose_frames(self.frames, clips.shape[2], seeds).to(clips.device)
        return frames[:, None, :, None, None] & region

    def zero(self, clips: Tensor) -> Tensor:
        """The delta that changes nothing."""
        return torch.zeros_like(clips)

    def perturb(self, clips: Tensor, delta: Tensor, seeds: Sequence[int]) -> Tensor:
        """The perturbed clips; the clamp takes off what the addition's rounding put on."""
        return (clips + delta).clamp(0, 1)

    def pull_back(
        self, clips: Tensor, delta: Tensor, gradient: Tensor, seeds: Sequence[int]
    ) -> Tensor:
        """The gradient itself: a delta is a change of every pixel."""
        return gradient

    def quantise(self, clips: Tensor, delta: Tensor) -> Tensor:
        """Whole steps of 1/255 that spend what the delta spends, see `in_levels`."""
        return self.in_levels(delta, -clips, 1 - clips)

    def in_levels(self, delta: Tensor, low: Tensor | float, high: Tensor | float) -> Tensor:
        """The delta in whole steps of 1/255 within [low, high], as large as the delta, not larger.

        Where a budget spread over all pixels is less than half a step for each, rounding one by one
        leaves nothing. So the delta is scaled, up if need be, before it is rounded: a step goes to
        the largest changes first, which is best where all pixels have the sign of their gradient.

        Args:
            delta: an allowed one.
            low, high: whole steps, with the shape of delta or one for all.
        """
        rows = 255 * self.grouped(delta)
        box = [
            (255 * self.grouped(torch.as_tensor(side).to(delta).expand_as(delta))).round()
            for side in (low, high)
        ]
        # Sizes of whole numbers, in double: nothing of the budget is left to rounding.
        budget = torch.full(
            (), 255 * self.eps * (1 + 1e-9), dtype=torch.float64, device=delta.device
        )
        spent = self.size(255 * delta.double()).view(len(rows)) * (1 + 1e-6)
        target = torch.minimum(spent, budget)

        def rounded(scale: Tensor) -> Tensor:
            return torch.minimum(torch.maximum((scale[:, None] * rows).round(), box[0]), box[1])

        def fits(levels: Tensor) -> Tensor:
            return self.size(self.ungrouped(levels, delta).double()).view(len(rows)) <= target

        # First the scale. The largest change alone would spend all of the budget at `above`.
        largest = rows.abs().amax(dim=1).clamp_min(torch.finfo(delta.dtype).tiny)
        # A bisection, as the size of rounded changes rises by jumps and has no inverse.
        below, above = torch.zeros_like(largest), (target.to(delta.dtype) + 1) / largest
        for _ in range(SCALINGS):
            middle = (below + above) / 2
            kept = fits(rounded(middle))
            below, above = torch.where(kept, middle, below), torch.where(kept, above, middle)
        # Then how many of the changes that take their next step between the two scales: there are
        # several where changes are alike (a block of one colour).
        least, most = rounded(below), rounded(above)
        rank = (least != most).cumsum(dim=1)
        few, many = torch.zeros_like(rank[:, -1]), rank[:, -1] + 1
        while (many - few > 1).any():
            middle = (few + many) // 2
            kept = fits(torch.where(rank <= middle[:, None], most, least))
            few, many = torch.where(kept, middle, few), torch.where(kept, many, middle)
        return self.ungrouped(torch.where(rank <= few[:, None], most, least), delta) / 255

    def verify(self, clean: Tensor, adversarial: Tensor, mask: Tensor) -> None:
        """Raise BudgetExceeded unless every adversarial clip is allowed, but for float rounding."""
        if not ((adversarial >= 0) & (adversarial <= 1)).all():
            raise BudgetExceeded(f"{self}: an adversarial clip leaves [0, 1]")
        if not torch.where(mask, True, adversarial == clean).all():
            raise BudgetExceeded(f"{self}: a pixel outside the chosen frames or region changed")
        delta = adversarial - clean
        # The clips are what the model sees: their rounding to float is allowed for, nothing else.
        excess = self.size(delta) - self.eps - self.rounding(delta)
        if excess.numel() and float(excess.max()) > 0:
            raise BudgetExceeded(f"{self}: a perturbation exceeds the budget by {excess.max():g}")

    def grouped(self, values: Tensor) -> Tensor:
        """Clips as rows `[G, n]`, one for each budget: a clip, or a frame of a clip."""
        if self.over == "frame" and values.ndim == 5:
            return values.transpose(1, 2).flatten(0, 1).flatten(1)
        return values.flatten(1)

    def ungrouped(self, rows: Tensor, like: Tensor) -> Tensor:
        """The inverse of `grouped`."""
        if self.over == "frame" and like.ndim == 5:
            return rows.view(like.transpose(1, 2).shape).transpose(1, 2)
        return rows.view(like.shape)

    def in_box(self, clips: Tensor, delta: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Delta where the mask lets it be, and the sides of its box, each `[G, n]`."""
        return self.grouped(only(mask, delta)), self.grouped(-clips), self.grouped(1 - clips)

    def dimensions(self, clips: Tensor, mask: Tensor) -> Tensor:
        """How many numbers of each clip share one budget, `[N, 1, ...]`."""
        per_group = self.grouped(mask.expand_as(clips)).sum(dim=1)
        groups = len(per_group) // len(clips)
        return _rows(per_group.view(-1, groups).amax(dim=1), clips)

    def grouped_step(self, step: float | Tensor, groups: int) -> float | Tensor:
        """A step, or one a clip `[N, 1, ...]`, as one a group `[G, 1]`."""
        if not isinstance(step, Tensor) or step.ndim == 0:
            return step
        return step.reshape(-1, 1).repeat_interleave(groups // len(step), dim=0)


def to_levels(values: Tensor) -> Tensor:
    """The nearest multiples of 1/255."""
    return (values * 255).round() / 255


def only(mask: Tensor, values: Tensor) -> Tensor:
    """Zero where the mask forbids a change."""
    return torch.where(mask, values, 0.0)


def draw(fill: Fill, shape: Sequence[int], generators: Sequence[torch.Generator]) -> Tensor:
    """Each row filled from its own generator, on the CPU in float32: every device starts alike."""
    noise = torch.empty(tuple(shape))
    for row, generator in zip(noise, generators, strict=True):
        fill(row, generator)
    return noise


def draw_levels(like: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """Each row uniform over 256 levels inside (0, 1), from its own generator, as `like` otherwise.

    An eighth of the random numbers that floats would take, and a quarter of what is copied to a
    GPU, which would wait longer for the start of an attack than it takes for a step of it.
    """
    count = like[0].numel()
    words = torch.empty(len(like), -(-count // 8), dtype=torch.int64)
    for row, generator in zip(words, generators, strict=True):
        row.random_(-(2**63), None, generator=generator)
    levels = words.view(torch.uint8)[:, :count].reshape(like.shape)
    return levels.to(like.device).to(like.dtype).add_(0.5).div_(256)


def uniform(row: Tensor, generator: torch.Generator) -> Tensor:
    """Fill with uniform numbers in [0, 1)."""
    return row.uniform_(generator=generator)


def normal(row: Tensor, generator: torch.Generator) -> Tensor:
    """Fill with standard normal numbers."""
    return row.normal_(generator=generator)


def _rows(values: Tensor, like: Tensor) -> Tensor:
    return values.to(like.dtype).view(-1, *[1] * (like.ndim - 1))
