"""Flicker: one change of colour for each whole frame (Pony, Naeh & Mannor 2021)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from vidcsl.errors import UserError
from vidcsl.registry import Option
from vidcsl.robustness.threats.masks import Probe
from vidcsl.robustness.threats.norms import Linf
from vidcsl.robustness.threats.threat import THREATS, BudgetExceeded, draw, uniform


@THREATS.register(
    "flicker",
    "one colour offset a frame",
    EPS_FLICKER=Option(
        [1.0, 2.0, 4.0, 8.0, 16.0, 32.0], "colour offsets of whole frames, in 1/255"
    ),
)
class Flicker(Linf):
    """Each frame gets one RGB offset of at most eps a channel: delta is `[N, 3, T, 1, 1]`.

    The box cuts pixels, not the offset: what would pass black or white stays there.
    """

    VERSION = 2  # steps look at both ends of the budget

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.region != "all":
            raise UserError(f"flicker changes whole frames, not the region {self.region!r}")

    def mask(self, clips: Tensor, seeds: Sequence[int], probe: Probe | None = None) -> Tensor:
        """What may change, `[N, 1, T, 1, 1]`."""
        if clips.ndim != 5:
            raise UserError("flicker needs clips [N, 3, T, H, W], not images")
        return super().mask(clips, seeds, probe)

    def zero(self, clips: Tensor) -> Tensor:
        """No offset."""
        return torch.zeros_like(clips[:, :, :, :1, :1])

    def start(self, clips: Tensor, mask: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """A uniform draw of the offsets."""
        zero = self.zero(clips)
        noise = draw(uniform, zero.shape, generators).to(clips)
        return self.project(clips, self.eps * (2 * noise - 1), mask)

    def project(self, clips: Tensor, delta: Tensor, mask: Tensor) -> Tensor:
        """The nearest allowed offsets."""
        return torch.where(mask, delta.clamp(-self.eps, self.eps), 0.0)

    def steepest_step(
        self, clips: Tensor, delta: Tensor, gradient: Tensor, step: float | Tensor, mask: Tensor
    ) -> Tensor:
        """The sign of the gradient, but not across zero, where the gain bends and may peak."""
        ascent = super().steepest_step(clips, delta, gradient, step, mask)
        return torch.where(delta * (delta + ascent) < 0, -delta, ascent)

    def pull_back(
        self, clips: Tensor, delta: Tensor, gradient: Tensor, seeds: Sequence[int]
    ) -> Tensor:
        """How much an offset gains on its way to the end of its budget that gains more.

        An offset moves all pixels of its frame but those that the box holds. Where many stand at
        black or white, the gain bends at zero: held pixels give no pull back, so that the slope on
        one side never leads to the other, which may be the better one. So both ends are looked at,
        by the gradient at hand. Where neither gains, the slope counts, to the right or to the left;
        at a peak there is none. Without pixels near black or white, all of these agree.
        """
        moved = clips + delta
        now = moved.clamp(0, 1)

        def total(change: Tensor) -> Tensor:
            return (gradient * change).sum(dim=(3, 4), keepdim=True)

        tiny = torch.finfo(gradient.dtype).tiny
        up, down = (total((clips + end).clamp(0, 1) - now) for end in (self.eps, -self.eps))
        rise = up / (self.eps - delta).clamp_min(tiny)
        fall = down / (self.eps + delta).clamp_min(tiny)
        to_an_end = torch.where(up >= down, rise, -fall)
        right = total((moved >= 0) & (moved < 1)).clamp_min(0)
        left = total((moved > 0) & (moved <= 1)).clamp_max(0)
        near = torch.where(right >= -left, right, left)
        return torch.where(torch.maximum(up, down) > 0, to_an_end, near)

    def verify(self, clean: Tensor, adversarial: Tensor, mask: Tensor) -> None:
        """Raise BudgetExceeded unless each frame changes by one offset, but for the box."""
        super().verify(clean, adversarial, mask)
        delta = adversarial - clean
        free = (adversarial > 0) & (adversarial < 1)
        highest = delta.masked_fill(~free, -torch.inf).amax(dim=(3, 4))
        lowest = delta.masked_fill(~free, torch.inf).amin(dim=(3, 4))
        # A pixel held at white would have risen by more, one held at black fallen by more.
        held_up = delta.masked_fill(adversarial < 1, -torch.inf).amax(dim=(3, 4))
        held_down = delta.masked_fill(adversarial > 0, torch.inf).amin(dim=(3, 4))
        rounding = 2 * self.rounding(delta)
        uneven = (
            (highest - lowest > rounding)
            | (held_up - lowest > rounding)
            | (highest - held_down > rounding)
        )
        if uneven.any():
            raise BudgetExceeded(f"{self}: the pixels of a frame change by different amounts")


def thickness(delta: Tensor) -> Tensor:
    """Mean absolute change in percent of the pixel range: `[N, 3, T, ...]` -> `[N]`."""
    return 100 * delta.abs().flatten(1).mean(dim=1)


def roughness(delta: Tensor) -> Tensor:
    """Mean absolute change from frame to frame in percent of the range: `[N, 3, T, ...]` -> `[N]`.

    Of a single frame: zero.
    """
    steps = delta.diff(dim=2).abs().flatten(1)
    return 100 * steps.sum(dim=1) / max(steps.shape[1], 1)
