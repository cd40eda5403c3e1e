"""Masks of pairs, bool `[b, M]`: compared, counted, turned into numbers.

On CPUs, comparisons are NumPy's and numbers come by way of bytes: torch's kernels to and from bool
do not use vector registers and are two to five times slower.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor


def equal(rows: Tensor, columns: Tensor) -> Tensor:
    """Where the integers `[b]` and `[M]` are equal."""
    return _compared(np.equal, torch.eq, rows[:, None], columns)


def above(values: Tensor, limit: float) -> Tensor:
    """Where `values` `[b, M]` are greater than the limit."""
    return _compared(np.greater, torch.gt, values, values.new_tensor(limit))


def at_least(values: Tensor, limits: Tensor) -> Tensor:
    """Where `values` `[b, M]` reach the limit of their row, `[b]`."""
    return _compared(np.greater_equal, torch.ge, values, limits[:, None])


def count(mask: Tensor) -> Tensor:
    """How many of each row are true, int64 `[b]`."""
    return mask.view(torch.int8).sum(dim=1, dtype=torch.int32).long()


def as_numbers(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """1 where true, else 0."""
    return mask.view(torch.int8).to(dtype)


def _compared(
    on_cpu: Callable[..., Any], elsewhere: Callable[..., Tensor], one: Tensor, other: Tensor
) -> Tensor:
    one, other = one.detach(), other.detach()
    if one.device.type != "cpu":
        return elsewhere(one, other)
    return torch.from_numpy(on_cpu(one.numpy(), other.numpy()))
