"""Random numbers for a batch: one generator a clip, drawn on the CPU whatever the device.

Everything is made from the raw bits of the generators, whose streams NumPy keeps the same in all
versions.
"""

from collections.abc import Callable, Sequence
from functools import cache
from statistics import NormalDist

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

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
    picked = torch.empty(clips.shape)
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
    return normal_like(torch.empty(len(generators), *shape), generators=generators)


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
