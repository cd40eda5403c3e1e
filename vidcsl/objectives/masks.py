"""Masks of pairs, bool `[b, M]`: compared, counted, turned into numbers.

All by way of bytes, as torch's CPU kernels to and from bool are two to five times slower.
"""

import torch
from torch import Tensor


def equal(rows: Tensor, columns: Tensor) -> Tensor:
    """Where the integers `[b]` and `[M]` are equal."""
    result = torch.empty(len(rows), len(columns), dtype=torch.int8, device=rows.device)
    return torch.eq(rows[:, None], columns, out=result).view(torch.bool)


def count(mask: Tensor) -> Tensor:
    """How many of each row are true, int64 `[b]`."""
    return mask.view(torch.int8).sum(dim=1, dtype=torch.int32).long()


def as_numbers(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """1 where true, else 0."""
    return mask.view(torch.int8).to(dtype)
