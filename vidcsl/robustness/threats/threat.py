"""What every threat shares: which frames and pixels may change, and the ball."""

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from vidcsl.errors import UserError
from vidcsl.seeding import torch_generator

# ----------------------------------------------------------------------
# What a threat is: which perturbations of a clip are allowed, apart from what they achieve.

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


# ----------------------------------------------------------------------
# Which frames of a clip may change.

Change = Callable[[Tensor, Tensor], Tensor]
"""`(gradient [N, 3, T, H, W], frames [N, T]) -> delta`: the strongest single step in them."""


def choose_frames(spec: Frames, num_frames: int, seeds: Sequence[int]) -> Tensor:
    """The frames that may change in each clip, where no model is needed to choose them.

    Args:
        spec: "all", "first:k", "random:k" (k different frames, drawn for each clip), or indices.
        num_frames: T.
        seeds: one a clip; row i depends on `seeds[i]` alone.

    Returns:
        Bool `[N, T]`, on the CPU.

    Raises:
        UserError: a frame that a clip of this length does not have.
    """
    check_frames(spec, num_frames)
    if spec == "all":
        return torch.ones(len(seeds), num_frames, dtype=torch.bool)
    if isinstance(spec, str):
        name, k = split(spec)
        rule = FRAME_RULES[name]
    else:
        k, rule = len(spec), lambda *_: torch.tensor(list(spec))
    chosen = torch.zeros(len(seeds), num_frames, dtype=torch.bool)
    for row, seed in zip(chosen, seeds, strict=True):
        row[rule(k, num_frames, seed)] = True
    return chosen


def search_frames(spec: str, clips: Tensor, probe: Probe, change: Change) -> Tensor:
    """The frames that may change in each clip, by what the model makes of them.

    Args:
        spec: "saliency:k" or "greedy:k".
        clips: `[N, 3, T, H, W]`.
        probe: the attacked model and goal.
        change: the strongest single step within given frames.

    Returns:
        Bool `[N, T]`, on the clips' device.
    """
    name, k = split(spec)
    return FRAME_SEARCHES[name](k, clips, probe, change)


def split(spec: str) -> tuple[str, int]:
    """("random", 3) of "random:3"."""
    name, _, k = spec.partition(":")
    return name, int(k)


def needs_model(spec: Frames) -> bool:
    """Whether only the attacked model can choose these frames."""
    return isinstance(spec, str) and spec.partition(":")[0] in FRAME_SEARCHES


def check_frames(spec: Frames, num_frames: int | None = None) -> None:
    """Raise UserError unless `spec` means something (and fits a clip of this length)."""
    if isinstance(spec, str):
        rules = [*FRAME_RULES, *FRAME_SEARCHES]
        if not re.fullmatch(rf"all|({'|'.join(rules)}):[1-9]\d*", spec):
            known = ", ".join(f"{rule}:k" for rule in rules)
            raise UserError(f"unknown frames {spec!r}: use all, {known} or indices")
        needed = 0 if spec == "all" else split(spec)[1]
    else:
        if not spec or min(spec) < 0:
            raise UserError(f"frames {spec!r} must hold one or more indices from 0")
        needed = max(spec) + 1
    if num_frames is not None and needed > num_frames:
        raise UserError(f"frames {spec!r} do not fit a clip of {num_frames} frames")


def _first(k: int, _num_frames: int, _seed: int) -> Tensor:
    return torch.arange(k)


def _random(k: int, num_frames: int, seed: int) -> Tensor:
    return torch.randperm(num_frames, generator=torch_generator(seed, "attacked frames"))[:k]


def _saliency(k: int, clips: Tensor, probe: Probe, _change: Change) -> Tensor:
    """Frames whose pixels the goal feels most, by the gradient at the clean clip.

    After Inkawhich et al. 2018, who perturb the frames of a video in the order of their saliency.
    """
    felt = probe.gradient_at(clips).abs().sum(dim=(1, 3, 4))  # [N, T]
    return torch.zeros_like(felt, dtype=torch.bool).scatter(1, felt.topk(k, dim=1).indices, True)


def _greedy(k: int, clips: Tensor, probe: Probe, change: Change) -> Tensor:
    """One frame after the other, each time that which a single step in it raises the goal most."""
    num_frames = clips.shape[2]
    chosen = torch.zeros(len(clips), num_frames, dtype=torch.bool, device=clips.device)
    delta = torch.zeros_like(clips)
    for _ in range(k):
        gradient = probe.gradient_at((clips + delta).clamp(0, 1))
        goals = torch.full_like(chosen, -torch.inf, dtype=clips.dtype)
        for frame in range(num_frames):
            trial = chosen.clone()
            trial[:, frame] = True
            goals[:, frame] = probe.goal_at((clips + change(gradient, trial)).clamp(0, 1))
        best = goals.masked_fill(chosen, -torch.inf).argmax(dim=1, keepdim=True)
        chosen.scatter_(1, best, True)
        delta = change(gradient, chosen)
    return chosen


FRAME_RULES: dict[str, Callable[[int, int, int], Tensor]] = {"first": _first, "random": _random}
FRAME_SEARCHES: dict[str, Callable[[int, Tensor, Probe, Change], Tensor]] = {
    "saliency": _saliency,
    "greedy": _greedy,
}


# ----------------------------------------------------------------------
# Which part of each frame may change: a patch, a patch that moves, a border.


def choose_region(spec: str, size: Sequence[int], seeds: Sequence[int]) -> Tensor:
    """The pixels that may change in each frame of each clip.

    Args:
        spec: "all", or "patch:r" (a square of r of a frame's area, at a place drawn for each clip),
            "moving_patch:r" (it glides from one such place to another), "border:r".
        size: (T, H, W).
        seeds: one a clip; row i depends on `seeds[i]` alone.

    Returns:
        Bool `[N, 1, T, H, W]`, or `[N, 1, 1, 1, 1]` for "all", on the CPU.
    """
    check_region(spec)
    if spec == "all":
        return torch.ones(len(seeds), 1, 1, 1, 1, dtype=torch.bool)
    name, _, ratio = spec.partition(":")
    masks = torch.zeros(len(seeds), *size, dtype=torch.bool)
    for mask, seed in zip(masks, seeds, strict=True):
        REGIONS[name](mask, float(ratio), torch_generator(seed, "attacked region"))
    return masks[:, None]


def check_region(spec: str) -> None:
    """Raise UserError unless `spec` means something."""
    names = "|".join(REGIONS)
    found = re.fullmatch(rf"(?:{names}):(\d*\.?\d+)", spec)
    if spec != "all" and not (found and 0 < float(found.group(1)) < 1):
        known = ", ".join(f"{name}:r" for name in REGIONS)
        raise UserError(f"unknown region {spec!r}: use all, {known}, r a share of the frame's area")


def _patch(mask: Tensor, ratio: float, generator: torch.Generator) -> None:
    """One square on the same place in all frames."""
    place = torch.rand(2, generator=generator)
    _squares(mask, ratio, place.expand(len(mask), 2))


def _moving_patch(mask: Tensor, ratio: float, generator: torch.Generator) -> None:
    """One square that moves in a straight line at even speed."""
    begin, end = torch.rand(2, 2, generator=generator)
    _squares(mask, ratio, begin + torch.linspace(0, 1, len(mask))[:, None] * (end - begin))


def _squares(mask: Tensor, ratio: float, places: Tensor) -> None:
    """Set a square in each frame; places [T, 2] in [0, 1] are shares of the free way."""
    frame = torch.tensor(mask.shape[1:])
    side = (ratio * frame.prod()).sqrt().round().long().clamp(min=1)
    height, width = torch.minimum(side, frame).tolist()
    free = frame - torch.tensor([height, width])
    for image, (top, left) in zip(mask, (places * free).round().long().tolist(), strict=True):
        image[top : top + height, left : left + width] = True


def _border(mask: Tensor, ratio: float, _generator: torch.Generator) -> None:
    """A frame of even width around every frame, whose area comes nearest to the ratio."""
    _, height, width = mask.shape
    widths = range(1, min(height, width) // 2 + 1)

    def area(border: int) -> float:
        return 1 - (height - 2 * border) * (width - 2 * border) / (height * width)

    border = min(widths, key=lambda border: abs(area(border) - ratio))
    mask[:] = True
    mask[:, border : height - border, border : width - border] = False


REGIONS: dict[str, Callable[[Tensor, float, torch.Generator], None]] = {
    "patch": _patch,
    "moving_patch": _moving_patch,
    "border": _border,
}


# ----------------------------------------------------------------------
# What the balls of every norm share: which pixels may change, the box, rounding, the check.

LEVEL = 1 / 255  # one step of an 8-bit pixel
Fill = Callable[[Tensor, torch.Generator], object]


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

    shared = False

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
                raise UserError(f"frames {self.frames!r} are chosen by a model: attack one")
            frames = self._searched(clips, region, probe)
        else:
            frames = choose_frames(self.frames, clips.shape[2], seeds).to(clips.device)
        return frames[:, None, :, None, None] & region

    def _searched(self, clips: Tensor, region: Tensor, probe: Probe) -> Tensor:
        nothing = torch.zeros_like(clips)

        def change(gradient: Tensor, frames: Tensor) -> Tensor:
            mask = frames[:, None, :, None, None] & region
            step = self.steepest_step(clips, nothing, gradient, self.eps, mask)
            return self.project(clips, step, mask)

        return search_frames(str(self.frames), clips, probe, change)

    def zero(self, clips: Tensor) -> Tensor:
        """The delta that changes nothing."""
        return torch.zeros_like(clips)

    def perturb(self, clips: Tensor, delta: Tensor, _seeds: Sequence[int]) -> Tensor:
        """The perturbed clips; the clamp takes off what the addition's rounding put on."""
        return (clips + delta).clamp(0, 1)

    def pull_back(
        self, _clips: Tensor, _delta: Tensor, gradient: Tensor, _seeds: Sequence[int]
    ) -> Tensor:
        """The gradient itself: a delta is a change of every pixel."""
        return gradient

    def quantise(self, delta: Tensor) -> Tensor:
        """The largest share of delta whose rounding to whole 1/255 keeps the budget.

        Every rounded value grows with the share, and with it the norm: so the share is bisected.
        """
        whole = self._keeps_budget(to_levels(delta))
        low = torch.zeros(len(delta), dtype=delta.dtype, device=delta.device)
        high = torch.ones_like(low)
        for _ in range(0 if whole.all() else 10):
            middle = (low + high) / 2
            fits = self._keeps_budget(to_levels(_rows(middle, delta) * delta))
            low, high = torch.where(fits, middle, low), torch.where(fits, high, middle)
        share = torch.where(whole, 1.0, low)
        return to_levels(_rows(share, delta) * delta)

    def _keeps_budget(self, delta: Tensor) -> Tensor:
        sizes = self.size(delta).view(len(delta), -1)
        return (sizes <= self.eps + self.rounding(delta)).all(dim=1)

    def verify(self, clean: Tensor, adversarial: Tensor, mask: Tensor) -> None:
        """Raise BudgetExceeded unless every adversarial clip is allowed, but for float rounding."""
        if not ((adversarial >= 0) & (adversarial <= 1)).all():
            raise BudgetExceeded(f"{self}: an adversarial clip leaves [0, 1]")
        if not torch.where(mask, True, adversarial == clean).all():
            raise BudgetExceeded(f"{self}: a pixel outside the chosen frames or region changed")
        delta = adversarial - clean
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
