"""What a foreign checkpoint looks like, as data, and how its tensors get our names."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

State = dict[str, Tensor]
Change = Callable[[State], State]
"""A change of the tensors behind their renaming: `state -> state`."""


@dataclass(frozen=True)
class Layout:
    """One format of checkpoints.

    Args:
        meaning: where such files come from, a line for the docs.
        encoders: those it fits.
        containers: keys under which the tensors may lie, the outermost first; tried in turn.
        renames: (pattern, replacement) of whole keys; the first pattern that matches counts. Keys
            that no pattern matches are unknown.
        left_out: (pattern, why) of keys that are no part of an encoder.
        changes: what is done to the tensors once they are renamed.
        fresh: patterns of our keys that such a checkpoint cannot hold; they stay as they are.
        normalisation: the pixel statistics of its training; empty: those of our encoder.
        mixed: whether trainings of several pixel statistics write such files, and cannot be told.
        clip: frames and pixels for which its fixed positions are numbered; None: it has none.
        bgr: whether it was trained on BGR pixels.
        note: what a user must know of it.
    """

    meaning: str
    encoders: tuple[str, ...]
    renames: tuple[tuple[str, str], ...]
    containers: tuple[str, ...] = ()
    left_out: tuple[tuple[str, str], ...] = ()
    changes: tuple[Change, ...] = ()
    fresh: tuple[str, ...] = ()
    normalisation: str = ""
    mixed: bool = False
    clip: tuple[int, int] | None = None
    bgr: bool = False
    note: str = ""


@dataclass(frozen=True)
class Renamed:
    """The tensors of a checkpoint under our names, and what became of the others.

    Args:
        state: for the encoder's backbone.
        left_out: foreign keys by the reason for which they are left out.
        unknown: foreign keys that the layout does not know.
    """

    state: State
    left_out: dict[str, list[str]]
    unknown: list[str]


def renamed(foreign: Mapping[str, Tensor], layout: Layout) -> Renamed:
    """Apply a layout to the tensors of a checkpoint."""
    state: State = {}
    left_out: dict[str, list[str]] = {}
    unknown = []
    for key, tensor in foreign.items():
        why = next((why for pattern, why in layout.left_out if re.fullmatch(pattern, key)), None)
        if why is not None:
            left_out.setdefault(why, []).append(key)
            continue
        ours = _our_name(key, layout.renames)
        if ours is None:
            unknown.append(key)
        else:
            state[ours] = tensor
    for change in layout.changes:
        state = change(state)
    return Renamed(state, left_out, unknown)


def _our_name(key: str, renames: tuple[tuple[str, str], ...]) -> str | None:
    for pattern, replacement in renames:
        match = re.fullmatch(pattern, key)
        if match:
            return match.expand(replacement)
    return None


def joined_qkv(state: State) -> State:
    """Separate query, key and value of each block as the one `qkv` of timm's attention.

    A bias that a checkpoint does not have (VideoMAE's keys have none) is zero. Where a part is
    missing or of another width, all are left as they are, and reported.
    """
    joined = dict(state)
    for start in {key.removesuffix("q.weight") for key in state if key.endswith(".q.weight")}:
        weights = [state[key] for part in "qkv" if (key := f"{start}{part}.weight") in state]
        if len(weights) < 3 or len({weight.shape for weight in weights}) > 1:
            continue
        parts = re.compile(re.escape(start) + r"[qkv]\.\w+")
        joined = {key: tensor for key, tensor in joined.items() if not parts.fullmatch(key)}
        joined[f"{start}qkv.weight"] = torch.cat(weights)
        joined = _with_bias(joined, start, state, rows=[len(weight) for weight in weights])
    return joined


def joined_bias(state: State) -> State:
    """`q_bias` and `v_bias` beside a joint weight as the bias of timm's attention."""
    joined = {key: tensor for key, tensor in state.items() if not re.search(r"\.[qkv]\.bias", key)}
    for key, weight in state.items():
        if key.endswith(".qkv.weight"):
            start = key.removesuffix("qkv.weight")
            joined = _with_bias(joined, start, state, rows=[len(weight) // 3] * 3)
    return joined


def _with_bias(joined: State, start: str, state: State, *, rows: list[int]) -> State:
    biases = [state.get(f"{start}{part}.bias") for part in "qkv"]
    if all(bias is None for bias in biases):
        return joined
    filled = [
        torch.zeros(count) if bias is None else bias
        for bias, count in zip(biases, rows, strict=True)
    ]
    return {**joined, f"{start}qkv.bias": torch.cat(filled)}


def norm_eps(pattern: str, *, theirs: float, ours: float) -> Change:
    """BatchNorms that add another eps to their variance: the same results by other weights.

    In eval mode `w / sqrt(v + theirs) = w' / sqrt(v + ours)` gives w'. In training mode, where the
    variance is the batch's, the small difference stays.

    Args:
        pattern: of the BatchNorms' names, without the dot before `weight`.
        theirs, ours: the two eps.
    """

    def change(state: State) -> State:
        changed = dict(state)
        for key, variance in state.items():
            name = key.removesuffix(".running_var")
            if name != key and re.fullmatch(pattern, name) and f"{name}.weight" in state:
                scale = ((variance + ours) / (variance + theirs)).sqrt()
                changed[f"{name}.weight"] = state[f"{name}.weight"] * scale
        return changed

    return change
