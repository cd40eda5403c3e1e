"""Balls whose steepest steps change few numbers: L1 (few pixels), l_{2,1} (few frames)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from vidcsl.errors import UserError
from vidcsl.robustness.threats.ball import Ball, draw, normal, only, uniform
from vidcsl.robustness.threats.projections import nearest_in_l1, shrinkage


class L1(Ball):
    """The sum of all changes of a clip may not exceed eps."""

    def start(self, clips: Tensor, mask: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """A uniform draw from the ball, cut to the box."""
        signed = 2 * draw(uniform, clips.shape, generators).to(clips) - 1
        tiny = torch.finfo(clips.dtype).tiny
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


class FrameSparse(Ball):
    """The Euclidean norms of a clip's frames may not sum to more than eps: few frames change.

    The l_{2,1} norm of Wei et al. 2019, "Sparse adversarial perturbations for videos", as a budget.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.over != "clip":
            raise UserError("the frame-sparse budget is over the clip: use L2 for a budget a frame")

    def mask(self, clips: Tensor, seeds: Sequence[int], probe: object = None) -> Tensor:
        """What may change, as in every ball; images have no frames to be sparse in."""
        if clips.ndim != 5:
            raise UserError("a frame-sparse budget needs clips [N, 3, T, H, W], not images")
        return super().mask(clips, seeds, probe)  # type: ignore[arg-type]

    def start(self, clips: Tensor, mask: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """Random directions, eps shared among the frames at random, cut to the box."""
        directions = only(mask, draw(normal, clips.shape, generators).to(clips))
        shape = (len(clips), 1, clips.shape[2], 1, 1)
        shares = only(self._alive(directions), -draw(uniform, shape, generators).to(clips).log())
        total = shares.sum(dim=2, keepdim=True).clamp_min(torch.finfo(clips.dtype).tiny)
        return self.project(clips, self.eps * shares / total * self._unit(directions), mask)

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
        self, _clips: Tensor, _delta: Tensor, gradient: Tensor, step: float | Tensor, mask: Tensor
    ) -> Tensor:
        """The gradient's direction in the one frame where the gradient is largest."""
        gradient = only(mask, gradient)
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

    def _alive(self, delta: Tensor) -> Tensor:
        return self._norms(delta) > 0
