"""Random numbers for corruptions, with one generator per video, and the layouts of clips.

Tensors name their dtype here and in the corruptions: a program that sets another default dtype
must get the same pixels.
"""

from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from statistics import NormalDist

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# ----------------------------------------------------------------------
# Layouts that image operators and codecs take.


def to_frames(clips: Tensor) -> Tensor:
    """Clips `[N, C, T, H, W]` as a batch of images `[N * T, C, H, W]`."""
    return clips.transpose(1, 2).flatten(0, 1)


def to_clips(frames: Tensor, *, count: int) -> Tensor:
    """Images `[N * T, C, H, W]` back to N = `count` clips `[N, C, T, H, W]`."""
    return frames.unflatten(0, (count, -1)).transpose(1, 2)


def to_bytes(clips: Tensor) -> Tensor:
    """[0, 1] floats to the nearest of 256 levels, uint8."""
    return (clips * 255).round_().clamp_(0, 255).to(torch.uint8)


# ----------------------------------------------------------------------
# Random numbers for a batch: one generator per clip, drawn on the CPU whatever the device.
#
# Everything is computed from the generators' raw bits, the only stream that NumPy promises to keep
# the same in all versions.

Generators = Sequence[np.random.Generator]

LEVELS = 1 << 16


def draw_each(
    generators: Generators,
    draw: Callable[[np.random.Generator], Tensor],
    *,
    device: torch.device | None = None,
) -> Tensor:
    """Call `draw` once a clip and stack the results to `[N, ...]`.

    Never one draw for the whole batch: a clip's numbers must not depend on its neighbours.
    """
    return torch.stack([draw(generator) for generator in generators]).to(device)


def normal_like(clips: Tensor, *, generators: Generators) -> Tensor:
    """Standard normal numbers of the clips' shape, on their device.

    Each is one of 65,536 equally likely quantiles, which takes a third of the time of a draw from
    the continuous distribution and differs from it by 2^-17 at most (in distribution function).
    """
    return pick_like(clips, _normal_quantiles(), generators=generators)


def pick_like(clips: Tensor, table: NDArray[np.float32], *, generators: Generators) -> Tensor:
    """For each value of the clips one of the table's 65,536, all equally likely."""
    picked = torch.empty(clips.shape, dtype=torch.float32)
    for row, generator in zip(picked.numpy(), generators, strict=True):
        bits = random_bits(row.shape, generator=generator, kind=np.uint16)
        np.take(table, bits, out=row, mode="wrap")
    return picked.to(clips.device)


def uniform(*shape: int, generators: Generators) -> Tensor:
    """Uniform numbers in [0, 1), multiples of 2^-24, `[N, *shape]`, left on the CPU."""
    return draw_each(
        generators,
        lambda g: torch.from_numpy(
            (random_bits(shape, generator=g, kind=np.uint32) >> 8).astype(np.float32)
        ).mul_(2**-24),
    )


def normal(*shape: int, generators: Generators) -> Tensor:
    """Standard normal numbers, `[N, *shape]`, left on the CPU; see `normal_like`."""
    like = torch.empty(len(generators), *shape, dtype=torch.float32)
    return normal_like(like, generators=generators)


def random_bits(shape: Sequence[int], *, generator: np.random.Generator, kind: type) -> NDArray:
    """Whole numbers of the unsigned type `kind`, every value equally likely."""
    count, width = int(np.prod(shape)), np.dtype(kind).itemsize
    words = generator.bit_generator.random_raw(-(-count * width // 8))
    return words.view(kind)[:count].reshape(shape)


def permutation(length: int, *, generator: np.random.Generator) -> Tensor:
    """0 to `length - 1` in random order."""
    keys = random_bits((length,), generator=generator, kind=np.uint64)
    return torch.from_numpy(keys.argsort(kind="stable"))


@cache
def _normal_quantiles() -> NDArray[np.float32]:
    """The normal quantiles at (i + 1/2) / 65,536, scaled to a standard deviation of 1."""
    upper = np.array([NormalDist().inv_cdf((i + 0.5) / LEVELS) for i in range(LEVELS // 2, LEVELS)])
    quantiles = np.concatenate([-upper[::-1], upper])
    return (quantiles / quantiles.std()).astype(np.float32)


# ----------------------------------------------------------------------
# Poisson counts of few different means, by Walker's alias method (Walker, TOMS 1977).

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
    counts = torch.empty(levels.shape, dtype=torch.float32)
    for row, out, generator in zip(levels, counts, generators, strict=True):
        bits = torch.from_numpy(
            random_bits((row.numel(),), generator=generator, kind=np.uint32).view(np.int32)
        )
        blocks = (each.flatten().split(_CHUNK) for each in (row, out, bits))
        for level, count, draw in zip(*blocks, strict=True):
            # A column at random, or with its own probability the other count that shares it. One
            # draw decides both: its low 8 bits the column, the next 16 the choice.
            level = level.int()
            column = draw & (_COLUMNS - 1)
            entry = table.index_select(0, level * _COLUMNS + column)
            kept = ((draw >> 8) & 0xFFFF) < (entry >> 8)
            chosen = torch.where(kept, column, entry & 0xFF)
            count.copy_(chosen + lowest.index_select(0, level))
    return counts


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
    """A row of the alias table: each column is its own count up to a threshold, then another."""
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
