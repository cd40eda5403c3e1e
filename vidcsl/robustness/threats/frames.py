"""Which frames of a clip may change."""

import re
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vidcsl.errors import UserError
from vidcsl.robustness.threats.threat import Frames, Probe
from vidcsl.seeding import torch_generator

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
