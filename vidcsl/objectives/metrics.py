"""What a method reports beside its loss, in a form that stays exact over steps and processes."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Share:
    """`part / whole`, both summed over steps and processes before the division.

    Args:
        part, whole: scalars, or `[classes + 1]` with one entry for each class of anchors and a last
            one for the unlabelled.
    """

    part: Tensor
    whole: Tensor


Metric = Tensor | Share
"""A scalar, to be averaged over steps and processes, or a share."""
