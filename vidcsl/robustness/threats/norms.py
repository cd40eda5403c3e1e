"""The balls of the Linf and the Euclidean norm."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from vidcsl.errors import UserError
from vidcsl.robustness.threats.ball import (
    LEVEL,
    Ball,
    draw,
    draw_levels,
    normal,
    only,
    to_levels,
    uniform,
)
from vidcsl.robustness.threats.projections import nearest_in_l2


class Linf(Ball):
    """No pixel value may change by more than eps (in [0, 1]: 8/255, not 8)."""

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
        self, _clips: Tensor, _delta: Tensor, gradient: Tensor, step: float | Tensor, mask: Tensor
    ) -> Tensor:
        """The sign of the gradient."""
        return only(mask, step * gradient.sign())

    def quantise(self, delta: Tensor) -> Tensor:
        """The nearest allowed multiples of 1/255."""
        limit = math.floor(self.eps / LEVEL + 1e-4) * LEVEL
        return to_levels(delta.clamp(-limit, limit))

    def size(self, delta: Tensor) -> Tensor:
        """The largest change, `[N]`."""
        return self.grouped(delta).abs().amax(dim=1)

    def rounding(self, delta: Tensor) -> float:
        """Both clean and perturbed pixels, at most 1, are rounded."""
        return 2 * torch.finfo(delta.dtype).eps


class L2(Ball):
    """The Euclidean norm of a clip's perturbation, over all its frames, may not exceed eps."""

    def start(self, clips: Tensor, mask: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """A uniform draw from the ball (in so many dimensions near its sphere), cut to the box."""
        directions = draw(normal, clips.shape, generators).to(clips)
        noise = draw(uniform, (len(clips), *[1] * (clips.ndim - 1)), generators).to(clips)
        radius = self.eps * noise ** (1 / self.dimensions(clips, mask))
        step = self.steepest_step(clips, directions, directions, radius, mask)
        return self.project(clips, step, mask)

    def project(self, clips: Tensor, delta: Tensor, mask: Tensor) -> Tensor:
        """The nearest allowed delta."""
        point, low, high = self.in_box(clips, delta, mask)
        return self.ungrouped(nearest_in_l2(point, low, high, self.eps), delta)

    def steepest_step(
        self, _clips: Tensor, _delta: Tensor, gradient: Tensor, step: float | Tensor, mask: Tensor
    ) -> Tensor:
        """The direction of the gradient; a zero gradient gives no step."""
        rows = self.grouped(only(mask, gradient))
        tiny = torch.finfo(rows.dtype).tiny
        # A confident model's gradients are so small that their squares underflow: scale them first.
        scaled = rows / rows.abs().amax(dim=1, keepdim=True).clamp_min(tiny)
        length = torch.linalg.vector_norm(scaled, dim=1, keepdim=True).clamp_min(tiny)
        return self.ungrouped(self.grouped_step(step, len(rows)) * scaled / length, gradient)

    def size(self, delta: Tensor) -> Tensor:
        """Euclidean norms."""
        return torch.linalg.vector_norm(self.grouped(delta), dim=1)

    def rounding(self, delta: Tensor) -> float:
        """Each pixel of clips + delta is rounded, and so are the sums in both norms."""
        return torch.finfo(delta.dtype).eps * math.sqrt(delta[:1].numel()) + 1e-5 * self.eps
