"""Poisson counts of few different means, by Walker's alias method (Walker, TOMS 1977)."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from vidcsl.robustness.corruptions.draws import Generators, random_bits

_COLUMNS = 256  # possible counts of one mean: ± 7 standard deviations up to a mean of 300
_CHUNK = 1 << 15  # values worked on at a time, so that they stay in the cache


def poisson_counts(levels: Tensor, means: Sequence[float], *, generators: Generators) -> Tensor:
    """For each value a count from the Poisson distribution of its level's mean.

    torch.poisson does the same for arbitrary means, at eight times the cost, and on a GPU draws
    other numbers than on the CPU.

    Args:
        levels: whole numbers `[N, ...]` on the CPU, which of the means is meant.
        means: at most 300 each.
        generators: N of them.

    Returns:
        float32 counts of the shape of `levels`.
    """
    table, lowest = _alias_table(tuple(means))
    counts = torch.empty(levels.shape)
    for row, out, generator in zip(levels, counts, generators, strict=True):
        bits = torch.from_numpy(
            random_bits((row.numel(),), generator=generator, kind=np.uint32).view(np.int32)
        )
        pieces = (each.flatten().split(_CHUNK) for each in (row, out, bits))
        for level, count, draw in zip(*pieces, strict=True):
            count.copy_(_sampled(level.int(), draw, table, lowest))
    return counts


def _sampled(level: Tensor, draw: Tensor, table: Tensor, lowest: Tensor) -> Tensor:
    """A column at random, or with its own probability the other count that shares the column."""
    column = draw & (_COLUMNS - 1)
    entry = table.index_select(0, level * _COLUMNS + column)
    kept = ((draw >> 8) & 0xFFFF) < (entry >> 8)
    return torch.where(kept, column, entry & 0xFF) + lowest.index_select(0, level)


@lru_cache(maxsize=32)
def _alias_table(means: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    """int32 `[levels * columns]`, 2^16 x probability and alias in one; lowest count `[levels]`."""
    lowest = [max(0, int(mean - 8 * mean**0.5)) for mean in means]
    rows = [_alias_row(_probabilities(m, low)) for m, low in zip(means, lowest, strict=True)]
    return torch.from_numpy(np.concatenate(rows)), torch.tensor(lowest, dtype=torch.int32)


def _probabilities(mean: float, lowest: int) -> np.ndarray:
    counts = np.arange(lowest, lowest + _COLUMNS)
    if mean == 0:
        return (counts == 0).astype(float)
    factorials = torch.lgamma(torch.from_numpy(counts).double() + 1).numpy()
    weights = np.exp(counts * np.log(mean) - mean - factorials)
    return weights / weights.sum()


def _alias_row(probabilities: np.ndarray) -> np.ndarray:
    """Each column holds its own count up to a threshold and one other above it."""
    heights = probabilities * len(probabilities)
    thresholds, aliases = np.ones(len(heights)), np.arange(len(heights))
    short = [i for i, height in enumerate(heights) if height < 1]
    tall = [i for i, height in enumerate(heights) if height >= 1]
    while short and tall:
        low, high = short.pop(), tall.pop()
        thresholds[low], aliases[low] = heights[low], high
        heights[high] -= 1 - heights[low]
        (short if heights[high] < 1 else tall).append(high)
    # A full column needs 2^16, one more than fits: its alias is itself, so nothing is lost.
    packed = np.minimum(np.round(thresholds * 65536), 65535).astype(np.int32)
    return packed * 256 + aliases.astype(np.int32)
