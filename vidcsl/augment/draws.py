"""One row of uniform numbers for each clip: the only source of chance in augmentation.

Every parameter of an augmentation is a pure function of its clip's row. So a sample is augmented
the same way whatever its batch, worker, rank or device, and changing one probability leaves all
other choices as they were.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vidcsl.seeding import numpy_generator

CROP_TRIES = 10


class ClipDraws(NamedTuple):
    """Uniform numbers in [0, 1), named by what they decide; float32, `[N]` unless said."""

    area: Tensor  # [N, CROP_TRIES]
    aspect: Tensor  # [N, CROP_TRIES]
    jitter_strengths: Tensor  # [N, 4]: brightness, contrast, saturation, hue
    jitter_order: Tensor  # [N, 4]
    top: Tensor
    left: Tensor
    flip: Tensor
    jitter: Tensor
    gray: Tensor
    blur: Tensor
    blur_sigma: Tensor
    solarise: Tensor
    motion: Tensor


# Columns of each field in the row; a field not named here has one. A new field goes to the end,
# where it leaves the numbers of the others alone.
_WIDTHS = {"area": CROP_TRIES, "aspect": CROP_TRIES, "jitter_strengths": 4, "jitter_order": 4}


def uniform_draws(seeds: Sequence[int], count: int) -> Tensor:
    """Uniform numbers in [0, 1), float32 `[N, count]`; row i depends on `seeds[i]` alone."""
    rows = np.empty((len(seeds), count), dtype=np.float32)
    for row, seed in zip(rows, seeds, strict=True):
        numpy_generator(seed).random(out=row, dtype=np.float32)
    return torch.from_numpy(rows)


def clip_draws(seeds: Sequence[int]) -> ClipDraws:
    """The named uniform numbers of N clips, one seed each, on the CPU."""
    widths = [_WIDTHS.get(name, 1) for name in ClipDraws._fields]
    columns = uniform_draws(seeds, sum(widths)).split(widths, dim=1)
    return ClipDraws(*(part.squeeze(1) if part.shape[1] == 1 else part for part in columns))


def between(low: float | Tensor, high: float | Tensor, uniform: Tensor) -> Tensor:
    """Spread uniform numbers in [0, 1) over `low` to `high`."""
    return low + (high - low) * uniform
