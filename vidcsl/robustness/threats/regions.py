"""Which part of each frame may change: a patch, a patch that moves, a border."""

import re
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vidcsl.errors import UserError
from vidcsl.seeding import torch_generator


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
