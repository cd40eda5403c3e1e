"""Threats: which perturbations of a clip are allowed, apart from what they are to achieve and how.

A threat works on clips `[N, 3, T, H, W]` in [0, 1] (on images `[N, 3, H, W]` too, if every frame
may change): norms are taken over all dimensions but the first, so that eps is the budget of a whole
clip. `mask` says which pixels may change; whoever holds a threat asks for it once
(`threat.mask(clips, seeds)`) and hands it back with every call, sliced along with the clips.
"""

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

Frames = str | Sequence[int]
Fill = Callable[[Tensor, torch.Generator], None]


class BudgetExceeded(AssertionError):
    """A perturbation left its threat: an error in an attack, never in its use."""


class Threat(Protocol):
    """Which perturbations are allowed. Everything a solver needs to know of a norm."""

    @property
    def eps(self) -> float:
        """The size of the budget, in units of pixels in [0, 1]."""

    def mask(self, clips: Tensor, seeds: Sequence[int]) -> Tensor:
        """What may change: bool, broadcastable to the clips, with N rows."""

    def start(self, clips: Tensor, mask: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """A random allowed delta; row i depends on `generators[i]` (CPU) and `clips[i]` alone."""

    def project(self, clips: Tensor, delta: Tensor, mask: Tensor) -> Tensor:
        """An allowed delta near the given one: in the budget, and clips + delta in [0, 1]."""

    def steepest_step(self, gradient: Tensor, step: float | Tensor, mask: Tensor) -> Tensor:
        """The increment of size `step` (in the threat's norm) with the largest inner product."""

    def verify(self, clean: Tensor, adversarial: Tensor, mask: Tensor) -> None:
        """Raise BudgetExceeded unless every adversarial clip is allowed, but for float rounding."""


def choose_frames(spec: Frames, num_frames: int, seeds: Sequence[int]) -> Tensor:
    """The frames that may change in each clip.

    Args:
        spec: "all", "first:k", "random:k" (k different frames, drawn for each clip), or indices.
        num_frames: T.
        seeds: one a clip; row i depends on `seeds[i]` alone.

    Returns:
        Bool `[N, T]`, on the CPU.

    Raises:
        UserError: a frame that a clip of this length does not have.
    """
    _check_frames(spec)
    if spec == "all":
        return torch.ones(len(seeds), num_frames, dtype=torch.bool)
    if isinstance(spec, str):
        name, _, k = spec.partition(":")
        needed, rule = int(k), FRAME_RULES[name]
    else:
        needed, rule = max(spec) + 1, lambda *_: torch.tensor(list(spec))
    if needed > num_frames:
        raise UserError(f"frames {spec!r} do not fit a clip of {num_frames} frames")
    chosen = torch.zeros(len(seeds), num_frames, dtype=torch.bool)
    for row, seed in zip(chosen, seeds, strict=True):
        row[rule(needed, num_frames, seed)] = True
    return chosen


def _first(k: int, _num_frames: int, _seed: int) -> Tensor:
    return torch.arange(k)


def _random(k: int, num_frames: int, seed: int) -> Tensor:
    return torch.randperm(num_frames, generator=torch_generator(seed, "attacked frames"))[:k]


FRAME_RULES: dict[str, Callable[[int, int, int], Tensor]] = {"first": _first, "random": _random}


def _check_frames(spec: Frames) -> None:
    if isinstance(spec, str):
        if not re.fullmatch(rf"all|({'|'.join(FRAME_RULES)}):[1-9]\d*", spec):
            raise UserError(f"unknown frames {spec!r}: use all, first:k, random:k or indices")
    elif not spec or min(spec) < 0:
        raise UserError(f"frames {spec!r} must hold one or more indices from 0")


def _only(mask: Tensor, values: Tensor) -> Tensor:
    return torch.where(mask, values, 0.0)


def _norm(values: Tensor) -> Tensor:
    """Euclidean norm of each clip, shaped to broadcast: [N, 1, ...]."""
    return torch.linalg.vector_norm(values, dim=tuple(range(1, values.ndim)), keepdim=True)


def _draw(fill: Fill, shape: Sequence[int], generators: Sequence[torch.Generator]) -> Tensor:
    noise = torch.empty(shape)  # on the CPU and float32, so that every device starts alike
    for row, generator in zip(noise, generators, strict=True):
        fill(row, generator)
    return noise


def _uniform(row: Tensor, generator: torch.Generator) -> None:
    row.uniform_(generator=generator)


def _normal(row: Tensor, generator: torch.Generator) -> None:
    row.normal_(generator=generator)


def _within_box(clips: Tensor, delta: Tensor) -> Tensor:
    return torch.minimum(torch.maximum(delta, -clips), 1 - clips)


@dataclass(frozen=True)
class _NormBall(ABC):
    """What the balls of every norm share.

    Args:
        eps: radius, in units of pixels in [0, 1].
        frames: which frames may change, see `choose_frames`.
    """

    eps: float
    frames: Frames = "all"

    def __post_init__(self) -> None:
        if not (self.eps >= 0 and math.isfinite(self.eps)):
            raise UserError(f"eps must be a finite number from 0, not {self.eps}")
        _check_frames(self.frames)

    @abstractmethod
    def _excess(self, delta: Tensor) -> float:
        """By how much the largest delta exceeds the budget, beyond float rounding."""

    def mask(self, clips: Tensor, seeds: Sequence[int]) -> Tensor:
        """What may change: bool [N, 1, T, 1, 1], for images [N, 1, 1, 1]."""
        if clips.ndim == 5:
            frames = choose_frames(self.frames, clips.shape[2], seeds)
            return frames[:, None, :, None, None].to(clips.device)
        if self.frames != "all":
            raise UserError(f"frames {self.frames!r} need clips [N, 3, T, H, W], not images")
        return torch.ones(len(clips), 1, 1, 1, dtype=torch.bool, device=clips.device)

    def verify(self, clean: Tensor, adversarial: Tensor, mask: Tensor) -> None:
        """Raise BudgetExceeded unless every adversarial clip is allowed, but for float rounding."""
        if not ((adversarial >= 0) & (adversarial <= 1)).all():
            raise BudgetExceeded(f"{self}: an adversarial clip leaves [0, 1]")
        if not torch.where(mask, True, adversarial == clean).all():
            raise BudgetExceeded(f"{self}: a pixel outside the chosen frames changed")
        excess = self._excess(adversarial - clean)
        if excess > 0:
            raise BudgetExceeded(f"{self}: a perturbation exceeds the budget by {excess:g}")


class Linf(_NormBall):
    """No pixel value may change by more than eps (in [0, 1]: 8/255, not 8)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.eps > 1:
            raise UserError(
                f"an Linf eps is in pixels of [0, 1]: 8/255 rather than 8, not {self.eps}"
            )

    def start(self, clips: Tensor, mask: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """A uniform draw from the ball, cut to the box."""
        uniform = _draw(_uniform, clips.shape, generators).to(clips)
        return self.project(clips, self.eps * (2 * uniform - 1), mask)

    def project(self, clips: Tensor, delta: Tensor, mask: Tensor) -> Tensor:
        """The nearest allowed delta: in each coordinate, ball and box are intervals around 0."""
        return _only(mask, _within_box(clips, delta.clamp(-self.eps, self.eps)))

    def steepest_step(self, gradient: Tensor, step: float | Tensor, mask: Tensor) -> Tensor:
        """The sign of the gradient."""
        return _only(mask, step * gradient.sign())

    def _excess(self, delta: Tensor) -> float:
        tolerance = 2 * torch.finfo(delta.dtype).eps
        return float((delta.abs() - self.eps - tolerance).max()) if delta.numel() else 0.0


class L2(_NormBall):
    """The Euclidean norm of a clip's perturbation, over all its frames, may not exceed eps."""

    def start(self, clips: Tensor, mask: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """A uniform draw from the ball (in so many dimensions near its sphere), cut to the box."""
        normal = _draw(_normal, clips.shape, generators).to(clips)
        uniform = _draw(_uniform, (len(clips), *[1] * (clips.ndim - 1)), generators).to(clips)
        dimensions = mask.expand_as(clips).flatten(1).sum(1).view_as(uniform)
        radius = self.eps * uniform ** (1 / dimensions)
        return self.project(clips, self.steepest_step(normal, radius, mask), mask)

    def project(self, clips: Tensor, delta: Tensor, mask: Tensor) -> Tensor:
        """First the box, then the ball.

        In this order both hold, as the box is convex and holds delta = 0, and no part of the budget
        is lost on changes that the box takes back. It is not always the nearest allowed delta.
        """
        boxed = _only(mask, _within_box(clips, delta))
        tiny = torch.finfo(delta.dtype).tiny
        return boxed * (self.eps / _norm(boxed).clamp_min(tiny)).clamp(max=1)

    def steepest_step(self, gradient: Tensor, step: float | Tensor, mask: Tensor) -> Tensor:
        """The direction of the gradient; a zero gradient gives no step."""
        gradient = _only(mask, gradient)
        tiny = torch.finfo(gradient.dtype).tiny
        # A confident model's gradients are so small that their squares underflow: scale them first.
        largest = gradient.abs().amax(dim=tuple(range(1, gradient.ndim)), keepdim=True)
        scaled = gradient / largest.clamp_min(tiny)
        return step * scaled / _norm(scaled).clamp_min(tiny)

    def _excess(self, delta: Tensor) -> float:
        # Each pixel of clips + delta is rounded, and so are the sums in both norms.
        rounding = torch.finfo(delta.dtype).eps * math.sqrt(delta[:1].numel()) + 1e-5 * self.eps
        return float((_norm(delta) - self.eps - rounding).max()) if delta.numel() else 0.0


THREATS: dict[str, Callable[..., Threat]] = {"linf": Linf, "l2": L2}
