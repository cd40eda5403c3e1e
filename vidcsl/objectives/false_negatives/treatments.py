"""What is done about the pairs that a detector flags: any treatment with any detector."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from vidcsl.objectives.losses import Pairs

Treatment = Callable[[Pairs, Tensor], Pairs]
"""`(pairs, flagged bool [b, M]) -> Pairs`."""


def eliminate(pairs: Pairs, flagged: Tensor) -> Pairs:
    """Drop the flagged from the denominator."""
    return replace(pairs, ignored=pairs.ignored | (flagged & ~pairs.positives))


def attract(pairs: Pairs, flagged: Tensor) -> Pairs:
    """Make the flagged positives; they stay in the denominator (FNC's released form)."""
    return replace(pairs, positives=pairs.positives | (flagged & ~pairs.ignored))


def weigh(pairs: Pairs, flagged: Tensor, *, weight: float) -> Pairs:
    """Let the flagged count as negatives by `weight`: 1 leaves them as they are, 0 eliminates."""
    factors = torch.where(flagged & ~pairs.positives, weight, 1.0)
    return replace(pairs, weights=factors if pairs.weights is None else pairs.weights * factors)


TREATMENTS: dict[str, Callable[..., Treatment]] = {
    "eliminate": lambda **_: eliminate,
    "attract": lambda **_: attract,
    "weight": lambda *, weight, **_: partial(weigh, weight=weight),
}
