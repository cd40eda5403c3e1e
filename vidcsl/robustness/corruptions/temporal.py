"""Frames lost, blank, frozen, reversed or out of order.

The published code shortens some clips. Here a lost frame is replaced by one that is kept, or is
black (`frame_drop`), so that a clip always has T frames. All but `frame_drop` select source frames
by an index `[N, T]`. A clip of one frame does not change.
"""

import numpy as np
import torch
from torch import Tensor

from vidcsl.robustness.corruptions.draws import Generators, draw_each, permutation, uniform


def sampling(clips: Tensor, *, generators: Generators, period: int) -> Tensor:
    """Keep every `period`-th frame and hold it until the next (from T on: the first frame only)."""
    return take_frames(clips, _held(clips.shape[2], period).expand(len(generators), -1))


def reverse_sampling(clips: Tensor, *, generators: Generators, period: int) -> Tensor:
    """Keep every `period`-th frame, play the kept frames backwards, hold each `period` times."""
    length = clips.shape[2]
    held = _held(length, period)
    return take_frames(clips, (held[-1] - held).expand(len(generators), -1))


def jumbling(clips: Tensor, *, generators: Generators, segment: int) -> Tensor:
    """Shuffle the frames inside consecutive segments of `segment` frames.

    A clip no longer than a segment is shuffled as a whole.
    """

    def order(generator: np.random.Generator) -> Tensor:
        parts = torch.arange(clips.shape[2]).split(segment)
        return torch.cat([p[permutation(len(p), generator=generator)] for p in parts])

    return take_frames(clips, draw_each(generators, order))


def box_jumbling(clips: Tensor, *, generators: Generators, segments: int) -> Tensor:
    """Cut the clip into `segments` parts (at most T) and shuffle the parts, not their frames."""

    def order(generator: np.random.Generator) -> Tensor:
        parts = torch.arange(clips.shape[2]).tensor_split(min(segments, clips.shape[2]))
        chosen = permutation(len(parts), generator=generator)
        return torch.cat([parts[i] for i in chosen.tolist()])

    return take_frames(clips, draw_each(generators, order))


def freezing(clips: Tensor, *, generators: Generators, probability: float) -> Tensor:
    """Replace each frame but the first, with `probability`, by the one shown before it."""
    times = torch.arange(clips.shape[2])
    frozen = uniform(clips.shape[2], generators=generators) < probability
    shown = torch.where(frozen, torch.zeros_like(times), times)
    return take_frames(clips, shown.cummax(-1).values)


def frame_drop(clips: Tensor, *, generators: Generators, probability: float) -> Tensor:
    """Lose each frame with `probability`, and show it as black."""
    kept = uniform(clips.shape[2], generators=generators) >= probability
    return clips * kept[:, None, :, None, None].to(clips)


def frame_rate(clips: Tensor, *, generators: Generators, rate: int, source_rate: int) -> Tensor:
    """Show the clip at `rate` frames per second; each shown frame is held until the next.

    A clip does not know its frame rate: it is assumed to have `source_rate` frames per second.
    """
    times = torch.arange(clips.shape[2])
    # In whole numbers: tick k of the slow clock falls on source frame ceil(k * source / rate).
    ticks = times * rate // source_rate
    shown = -(-ticks * source_rate // rate)
    return take_frames(clips, shown.expand(len(generators), -1))


def take_frames(clips: Tensor, frames: Tensor) -> Tensor:
    """Frame `frames[n, t]` of clip n at time t; `frames` is an index `[N, T]`."""
    # Whole frames clip by clip: one gather over the batch looks up every pixel and is slower.
    pairs = zip(clips, frames.to(clips.device), strict=True)
    return torch.stack([clip.index_select(1, chosen) for clip, chosen in pairs])


def _held(length: int, period: int) -> Tensor:
    return torch.arange(length) // period * period
