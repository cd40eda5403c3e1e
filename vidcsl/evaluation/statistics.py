"""Intervals and tests."""

import numpy as np
from torch import Tensor

from vidcsl.seeding import numpy_generator

DRAWS = 2000
LEVEL = 0.95


def bootstrap_interval(
    right: Tensor, *, seed: int = 0, draws: int = DRAWS, level: float = LEVEL
) -> tuple[float, float]:
    """Percentiles of the mean over videos that are drawn again, with replacement.

    Efron & Tibshirani, "An Introduction to the Bootstrap", 1993. Videos are drawn, not clips: the
    clips of one video stand and fall together.

    Args:
        right: for each video whether it is right, or the share of its clips that are: `[n]`.
        seed: of the draws.
        draws: how many samples of n videos.
        level: share of the draws that lie within the interval.
    """
    values = right.double().numpy()
    generator = numpy_generator(seed, "bootstrap")
    means = [values[generator.integers(0, len(values), len(values))].mean() for _ in range(draws)]
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
