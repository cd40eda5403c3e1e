"""The balls of the Linf, L2, L1 and frame-sparse norms, and the nearest points of these balls."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from vidcsl.errors import UserError
from vidcsl.registry import Option
from vidcsl.robustness.threats.masks import Probe
from vidcsl.robustness.threats.threat import (
    LEVEL,
    THREATS,
    Ball,
    draw,
    draw_levels,
    normal,
    only,
    to_levels,
    uniform,
)

# Nearest points of norm balls within a box, row by row, on `[G, n]` tensors.
#
# All boxes hold zero. Each problem comes down to one number a row, the root of a monotone and
# piecewise linear function; Newton's method finds it in a few passes over the data, without a sort.

PASSES = 64  # far more than Newton's method takes


def water_level(slopes: Tensor, caps: Tensor, target: Tensor) -> Tensor:
    """The smallest t >= 0 with sum_i min(t slopes_i, caps_i) >= target, in each row.

    The sum is concave in t, so that Newton's method from the left never passes the root, and ends
    on it once it knows which terms have reached their caps.

    Args:
        slopes, caps: from 0, `[G, n]`.
        target: from 0, `[G]`.

    Returns:
        `[G, 1]`; infinite where all caps together do not reach the target.
    """
    target = target[:, None]
    level = torch.zeros_like(target)
    for _ in range(PASSES):
        full = slopes * level >= caps
        missing = (target - caps.where(full, caps.new_zeros(())).sum(1, keepdim=True)).clamp_min(0)
        free = slopes.masked_fill(full, 0).sum(1, keepdim=True)
        # Zero over zero: the caps reach the target exactly, or the target is zero.
        found = torch.where(missing > 0, missing / free, level)
        if not (found > level * (1 + 1e-6)).any():
            break
        level = torch.maximum(level, found)
    return level


def shrinkage(sizes: Tensor, caps: Tensor, target: Tensor) -> Tensor:
    """The smallest t >= 0 with sum_i min(max(sizes_i - t, 0), caps_i) <= target, in each row.

    The sum falls with t but is neither convex nor concave: Newton steps within a bracket, which is
    halved wherever a step would leave it.

    Args:
        sizes, caps: from 0, `[G, n]`.
        target: from 0, `[G]`.

    Returns:
        `[G, 1]`.
    """
    target = target[:, None]
    low, high = torch.zeros_like(target), sizes.amax(1, keepdim=True)
    level = low
    for _ in range(PASSES):
        left = (sizes - level).clamp_min(0)
        excess = torch.minimum(left, caps).sum(1, keepdim=True) - target
        low, high = low.where(excess <= 0, level), high.where(excess > 0, level)
        done = excess.abs() <= 1e-6 * target
        if (done | (high - low <= 1e-7 * high)).all():
            break
        falling = ((left > 0) & (left < caps)).sum(1, keepdim=True)
        newton = level + excess / falling
        inside = (newton > low) & (newton < high)
        level = torch.where(done, level, torch.where(inside, newton, (low + high) / 2))
    return torch.where(done, level, high)


def nearest_in_l2(delta: Tensor, low: Tensor, high: Tensor, eps: float) -> Tensor:
    """The point of the Euclidean ball within [low, high] that is nearest to delta, all `[G, n]`."""
    boxed = torch.minimum(torch.maximum(delta, low), high)
    if not (_norm(boxed) > eps).any():
        return boxed
    # Optimality: the point is clip(s delta) for one s in [0, 1]; its squared norm is a sum of
    # min(s^2 delta_i^2, bound_i^2).
    bounds = high.where(delta > 0, low)
    target = delta.new_full((len(delta),), eps**2)
    scale = water_level(delta.square(), bounds.square(), target).sqrt().clamp(max=1)
    found = torch.minimum(torch.maximum(scale * delta, low), high)
    return found * (eps / _norm(found).clamp_min(torch.finfo(delta.dtype).tiny)).clamp(max=1)


def nearest_in_l1(delta: Tensor, low: Tensor, high: Tensor, eps: float) -> Tensor:
    """The point of the L1 ball within [low, high] that is nearest to delta, all `[G, n]`.

    The projection of Croce & Hein 2021, "Mind the Box", without its sort.
    """
    boxed = torch.minimum(torch.maximum(delta, low), high)
    if not (boxed.abs().sum(1) > eps).any():
        return boxed
    # Optimality: the point is clip(sign(delta) max(|delta| - t, 0)) for one t >= 0.
    sizes, bounds = delta.abs(), high.where(delta > 0, -low)
    level = shrinkage(sizes, bounds, delta.new_full((len(delta),), eps))
    found = torch.minimum((sizes - level).clamp_min(0), bounds) * delta.sign()
    total = found.abs().sum(1, keepdim=True).clamp_min(torch.finfo(delta.dtype).tiny)
    return found * (eps / total).clamp(max=1)


def _norm(rows: Tensor) -> Tensor:
    return torch.linalg.vector_norm(rows, dim=1, keepdim=True)


@THREATS.register(
    "linf",
    "the largest change of a pixel value",
    EPS_LINF=Option(
        [0.1, 0.25, 0.5, 0.75, 1.0, 2.0, 4.0, 8.0], "Linf budgets, in 1/255 of the pixel range"
    ),
)
class Linf(Ball):
    """No pixel value may change by more than eps (in [0, 1]: 8/255, not 8)."""

    in_255 = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.eps > 1:
            raise UserError(
                f"an Linf eps is in pixels of [0, 1]: 8/255 rather than 8, not {self.eps}"
            )

    def start(self, clips: Tensor, mask: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """A uniform draw from the ball, of 256 levels, cut to the box."""
        return self.project(clips, self.eps * (2 * draw_levels(clips, generators) - 1), mask)

    def project(self, clips: Tensor, delta: Tensor, mask: Tensor) -> Tensor:
        """The nearest allowed delta: in each coordinate, ball and box are intervals around 0."""
        delta = delta.clamp(-self.eps, self.eps)
        return only(mask, torch.minimum(torch.maximum(delta, -clips), 1 - clips))

    def steepest_step(
        self, clips: Tensor, delta: Tensor, gradient: Tensor, step: float | Tensor, mask: Tensor
    ) -> Tensor:
        """The sign of the gradient."""
        return only(mask, step * gradient.sign())

    def in_levels(self, delta: Tensor, low: Tensor | float, high: Tensor | float) -> Tensor:
        """The nearest allowed multiples of 1/255: each number has a budget of its own."""
        limit = math.floor(self.eps / LEVEL * (1 + 1e-9)) * LEVEL
        return to_levels(delta.clamp(-limit, limit))

    def size(self, delta: Tensor) -> Tensor:
        """The largest change, `[N]`."""
        return self.grouped(delta).abs().amax(dim=1)

    def rounding(self, delta: Tensor) -> float:
        """Both clean and perturbed pixels, at most 1, are rounded."""
        return 2 * torch.finfo(delta.dtype).eps


@THREATS.register(
    "l2",
    "the Euclidean norm over the clip",
    EPS_L2=Option(
        [0.1, 0.25, 0.5, 1.0, 2.0, 4.0], "L2 budgets over the whole clip, pixels in [0, 1]"
    ),
)
class L2(Ball):
    """The Euclidean norm of a clip's perturbation, over all its frames, may not exceed eps."""

    VERSION = 2  # steps heed the box

    def start(self, clips: Tensor, mask: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """A uniform draw from the ball (in so many dimensions near its sphere), cut to the box."""
        directions = draw(normal, clips.shape, generators).to(clips)
        noise = draw(uniform, (len(clips), *[1] * (clips.ndim - 1)), generators).to(clips)
        radius = self.eps * noise ** (1 / self.dimensions(clips, mask))
        # Random normal directions of that length are a uniform draw.
        rows = self.grouped(only(mask, directions))
        lengths = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
        rows = rows / lengths.clamp_min(torch.finfo(rows.dtype).tiny)
        step = self.grouped_step(radius, len(rows)) * rows
        return self.project(clips, self.ungrouped(step, clips), mask)

    def project(self, clips: Tensor, delta: Tensor, mask: Tensor) -> Tensor:
        """The nearest allowed delta."""
        point, low, high = self.in_box(clips, delta, mask)
        return self.ungrouped(nearest_in_l2(point, low, high, self.eps), delta)

    def steepest_step(
        self, clips: Tensor, delta: Tensor, gradient: Tensor, step: float | Tensor, mask: Tensor
    ) -> Tensor:
        """The gradient's direction, as far as the box lets each pixel go; none where it is zero.

        Without the box, a step would be spent on pixels at black or white that cannot follow it.
        """
        rows = self.grouped(only(mask, gradient))
        tiny = torch.finfo(rows.dtype).tiny
        # A confident model's gradients are so small that their squares underflow: scale them first.
        scaled = rows / rows.abs().amax(dim=1, keepdim=True).clamp_min(tiny)
        room = torch.where(gradient > 0, 1 - clips - delta, clips + delta).clamp_min(0)
        room = self.grouped(room)
        length = self.grouped_step(step, len(rows))
        target = torch.as_tensor(length).to(rows).reshape(-1).expand(len(rows)).square()
        level = water_level(scaled.square(), room.square(), target).sqrt()
        # Zero times infinity: a pixel that is not felt, where all others have no room left.
        moved = (level * scaled.abs()).nan_to_num(0.0, posinf=torch.inf)
        return self.ungrouped(torch.minimum(moved, room) * scaled.sign(), gradient)

    def size(self, delta: Tensor) -> Tensor:
        """Euclidean norms."""
        return torch.linalg.vector_norm(self.grouped(delta), dim=1)

    def rounding(self, delta: Tensor) -> float:
        """Each pixel of clips + delta is rounded, and so are the sums in both norms."""
        return torch.finfo(delta.dtype).eps * math.sqrt(delta[:1].numel()) + 1e-5 * self.eps


@THREATS.register(
    "l1",
    "the sum of all changes of the clip",
    EPS_L1=Option(
        [1.0, 3.0, 10.0, 30.0, 100.0], "L1 budgets over the whole clip, pixels in [0, 1]"
    ),
)
class L1(Ball):
    """The sum of all changes of a clip may not exceed eps."""

    VERSION = 2  # PGD's steps shrink, APGD narrows its ball

    def start(self, clips: Tensor, mask: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """A uniform draw from the ball, cut to the box."""
        signed = 2 * draw(uniform, clips.shape, generators).to(clips) - 1
        tiny = torch.finfo(clips.dtype).tiny
        # Normalised Laplace numbers are uniform on the L1 sphere, as normal ones on the L2 one.
        laplace = only(mask, -signed.sign() * (1 - signed.abs()).clamp_min(1e-12).log())
        rows = self.grouped(laplace)
        rows = self.eps * rows / rows.abs().sum(1, keepdim=True).clamp_min(tiny)
        noise = draw(uniform, (len(clips), *[1] * (clips.ndim - 1)), generators).to(clips)
        radius = noise ** (1 / self.dimensions(clips, mask))
        return self.project(clips, radius * self.ungrouped(rows, clips), mask)

    def project(self, clips: Tensor, delta: Tensor, mask: Tensor) -> Tensor:
        """The nearest allowed delta."""
        point, low, high = self.in_box(clips, delta, mask)
        return self.ungrouped(nearest_in_l1(point, low, high, self.eps), delta)

    def steepest_step(
        self, clips: Tensor, delta: Tensor, gradient: Tensor, step: float | Tensor, mask: Tensor
    ) -> Tensor:
        """The pixels with the largest gradients go all the way to black or white, until `step`.

        Steepest ascent in L1 *and* the box (Croce & Hein 2021, "Mind the Box"): without the box,
        one pixel alone would take the whole step.
        """
        rows = self.grouped(only(mask, gradient))
        room = torch.where(gradient > 0, 1 - clips - delta, clips + delta).clamp_min(0)
        felt, order = rows.abs().sort(dim=1, descending=True)
        room = self.grouped(room).gather(1, order) * (felt > 0)
        left = self.grouped_step(step, len(rows)) - (room.cumsum(dim=1) - room)
        taken = torch.minimum(room, left.clamp_min(0))
        ascent = torch.zeros_like(rows).scatter(1, order, taken) * rows.sign()
        return self.ungrouped(ascent, gradient)

    def size(self, delta: Tensor) -> Tensor:
        """Sums of absolute changes."""
        return self.grouped(delta).abs().sum(dim=1)

    def rounding(self, delta: Tensor) -> float:
        """Each changed pixel of clips + delta is rounded, and so are the sums."""
        changed = int((delta != 0).flatten(1).sum(dim=1).max()) if delta.numel() else 0
        return torch.finfo(delta.dtype).eps * changed + 1e-5 * self.eps


@THREATS.register(
    "l21",
    "the sum of the frames' L2 norms: few frames change",
    EPS_L21=Option(
        [0.25, 0.5, 1.0, 2.0, 4.0], "frame-sparse budgets: sums of the frames' L2 norms"
    ),
)
class FrameSparse(Ball):
    """The Euclidean norms of a clip's frames may not sum to more than eps: few frames change.

    The l_{2,1} norm of Wei et al. 2019, "Sparse adversarial perturbations for videos", as a budget.
    """

    VERSION = 2  # steps heed the box

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.over != "clip":
            raise UserError("the frame-sparse budget is over the clip: use L2 for a budget a frame")

    def mask(self, clips: Tensor, seeds: Sequence[int], probe: Probe | None = None) -> Tensor:
        """What may change, as in every ball; images have no frames to be sparse in."""
        if clips.ndim != 5:
            raise UserError("a frame-sparse budget needs clips [N, 3, T, H, W], not images")
        return super().mask(clips, seeds, probe)

    def start(self, clips: Tensor, mask: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """Random directions, eps divided among the frames at random, cut to the box."""
        directions = only(mask, draw(normal, clips.shape, generators).to(clips))
        shape = (len(clips), 1, clips.shape[2], 1, 1)
        parts = only(self._norms(directions) > 0, -draw(uniform, shape, generators).to(clips).log())
        total = parts.sum(dim=2, keepdim=True).clamp_min(torch.finfo(clips.dtype).tiny)
        return self.project(clips, self.eps * parts / total * self._unit(directions), mask)

    def project(self, clips: Tensor, delta: Tensor, mask: Tensor) -> Tensor:
        """First the box, then the nearest point of the ball: whole frames shrink, some to nothing.

        In this order both hold, as the box is convex and holds delta = 0, and no part of the budget
        is lost on changes that the box takes back. It is not always the nearest allowed delta.
        """
        boxed = only(mask, torch.minimum(torch.maximum(delta, -clips), 1 - clips))
        norms = self._norms(boxed)  # [N, 1, T, 1, 1]
        flat = norms.flatten(1)
        level = shrinkage(flat, flat, flat.new_full((len(flat),), self.eps))
        kept = (norms - level.view(-1, 1, 1, 1, 1)).clamp_min(0)
        total = kept.sum(dim=2, keepdim=True)
        tiny = torch.finfo(delta.dtype).tiny
        kept = kept * (self.eps / total.clamp_min(tiny)).clamp(max=1)
        return boxed * (kept / norms.clamp_min(tiny))

    def steepest_step(
        self, clips: Tensor, delta: Tensor, gradient: Tensor, step: float | Tensor, mask: Tensor
    ) -> Tensor:
        """The gradient's direction in the one frame where the gradient is largest."""
        room = torch.where(gradient > 0, 1 - clips - delta, clips + delta)
        gradient = only(mask & (room > 0), gradient)  # pixels at black or white may not follow it
        tiny = torch.finfo(gradient.dtype).tiny
        gradient = gradient / gradient.flatten(1).abs().amax(1).clamp_min(tiny).view(-1, 1, 1, 1, 1)
        norms = self._norms(gradient)
        best = torch.zeros_like(norms).scatter(2, norms.argmax(dim=2, keepdim=True), 1.0)
        return step * best * self._unit(gradient)

    def size(self, delta: Tensor) -> Tensor:
        """Sums over frames of Euclidean norms, `[N]`."""
        return self._norms(delta).flatten(1).sum(dim=1)

    def rounding(self, delta: Tensor) -> float:
        """Each pixel of clips + delta is rounded, and so are the sums."""
        frames, pixels = delta.shape[2], delta[:1, :, :1].numel()
        return torch.finfo(delta.dtype).eps * frames * math.sqrt(pixels) + 1e-5 * self.eps

    def _norms(self, delta: Tensor) -> Tensor:
        return torch.linalg.vector_norm(delta, dim=(1, 3, 4), keepdim=True)

    def _unit(self, delta: Tensor) -> Tensor:
        return delta / self._norms(delta).clamp_min(torch.finfo(delta.dtype).tiny)
