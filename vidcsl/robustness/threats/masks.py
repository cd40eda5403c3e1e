"""What a perturbation may change: which frames of a clip, and which part of each frame."""

import re
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from vidcsl.errors import UserError
from vidcsl.seeding import torch_generator

Frames = str | Sequence[int]


class Probe(Protocol):
    """How a threat may ask the attacked model which frames matter most."""

    def goal_at(self, clips: Tensor) -> Tensor:
        """What the attack maximises, [N], at these clips."""

    def gradient_at(self, clips: Tensor) -> Tensor:
        """Its gradient, with the shape of the clips."""


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
    chosen = torch.zeros(len(seeds), num_frames, dtype=torch.bool)
    for row, seed in zip(chosen, seeds, strict=True):
        if not isinstance(spec, str):
            row[list(spec)] = True
            continue
        rule, _, k = spec.partition(":")
        row[FRAME_RULES[rule](int(k), num_frames, seed)] = True
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
    name, _, k = spec.partition(":")
    return FRAME_SEARCHES[name](int(k), clips, probe, change)


def needs_model(spec: Frames) -> bool:
    """Whether only the attacked model can choose these frames."""
    return isinstance(spec, str) and spec.partition(":")[0] in FRAME_SEARCHES


def check_frames(spec: Frames, num_frames: int | None = None) -> None:
    """Raise UserError unless `spec` names frames (and fits a clip of this length)."""
    if isinstance(spec, str):
        rules = [*FRAME_RULES, *FRAME_SEARCHES]
        if not re.fullmatch(rf"all|({'|'.join(rules)}):[1-9]\d*", spec):
            known = ", ".join(f"{rule}:k" for rule in rules)
            raise UserError(f"unknown frames {spec!r}: use all, {known} or indices")
        needed = 0 if spec == "all" else int(spec.partition(":")[2])
    else:
        if not spec or min(spec) < 0:
            raise UserError(f"frames {spec!r} must hold one or more indices from 0")
        needed = max(spec) + 1
    if num_frames is not None and needed > num_frames:
        raise UserError(f"frames {spec!r} do not fit a clip of {num_frames} frames")


def first_frames(k: int, num_frames: int, seed: int) -> Tensor:  # noqa: ARG001
    """The first k frames."""
    return torch.arange(k)


def random_frames(k: int, num_frames: int, seed: int) -> Tensor:
    """k different frames, drawn from the clip's seed."""
    return torch.randperm(num_frames, generator=torch_generator(seed, "attacked frames"))[:k]


def salient_frames(k: int, clips: Tensor, probe: Probe, change: Change) -> Tensor:  # noqa: ARG001
    """Frames whose pixels change the goal most, by the gradient at the clean clip.

    After Inkawhich et al. 2018, who perturb the frames of a video in the order of their saliency.
    """
    # A step of eps by signs moves the goal by this sum times eps, to first order.
    saliency = probe.gradient_at(clips).abs().sum(dim=(1, 3, 4))  # [N, T]
    chosen = saliency.topk(k, dim=1).indices
    return torch.zeros_like(saliency, dtype=torch.bool).scatter(1, chosen, True)


def greedy_frames(k: int, clips: Tensor, probe: Probe, change: Change) -> Tensor:
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
        # A frame that is chosen already changes nothing, but would be named where nothing helps.
        best = goals.masked_fill(chosen, -torch.inf).argmax(dim=1, keepdim=True)
        chosen.scatter_(1, best, True)
        delta = change(gradient, chosen)
    return chosen


FRAME_RULES: dict[str, Callable[[int, int, int], Tensor]] = {
    "first": first_frames,
    "random": random_frames,
}
FRAME_SEARCHES: dict[str, Callable[[int, Tensor, Probe, Change], Tensor]] = {
    "saliency": salient_frames,
    "greedy": greedy_frames,
}


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
    """Raise UserError unless `spec` names a region."""
    names = "|".join(REGIONS)
    found = re.fullmatch(rf"(?:{names}):(\d*\.?\d+)", spec)
    if spec != "all" and not (found and 0 < float(found.group(1)) < 1):
        known = ", ".join(f"{name}:r" for name in REGIONS)
        raise UserError(
            f"unknown region {spec!r}: use all, {known}, where r is a ratio of the frame's area"
        )


def patch(mask: Tensor, ratio: float, generator: torch.Generator) -> None:
    """One square at the same place in all frames."""
    place = torch.rand(2, generator=generator)
    _squares(mask, ratio, place.expand(len(mask), 2))


def moving_patch(mask: Tensor, ratio: float, generator: torch.Generator) -> None:
    """One square that moves in a straight line at even speed."""
    begin, end = torch.rand(2, 2, generator=generator)
    _squares(mask, ratio, begin + torch.linspace(0, 1, len(mask))[:, None] * (end - begin))


def border(mask: Tensor, ratio: float, generator: torch.Generator) -> None:  # noqa: ARG001
    """A frame of even width around every frame, whose area comes nearest to the ratio."""
    _, height, width = mask.shape

    def area(side: int) -> float:
        return 1 - (height - 2 * side) * (width - 2 * side) / (height * width)

    sides = range(1, min(height, width) // 2 + 1)
    side = min(sides, key=lambda side: abs(area(side) - ratio))
    mask[:] = True
    mask[:, side : height - side, side : width - side] = False


REGIONS: dict[str, Callable[[Tensor, float, torch.Generator], None]] = {
    "patch": patch,
    "moving_patch": moving_patch,
    "border": border,
}


def _squares(mask: Tensor, ratio: float, places: Tensor) -> None:
    """Set a square in each frame; places [T, 2] in [0, 1] are fractions of the free way."""
    frame = torch.tensor(mask.shape[1:])
    side = (ratio * frame.prod()).sqrt().round().long().clamp(min=1)
    height, width = torch.minimum(side, frame).tolist()
    free = frame - torch.tensor([height, width])
    for image, (top, left) in zip(mask, (places * free).round().long().tolist(), strict=True):
        image[top : top + height, left : left + width] = True
