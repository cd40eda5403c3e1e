"""What is known of the rows that are compared."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vidcsl.objectives.masks import equal


@dataclass(frozen=True)
class Samples:
    """What is known of each row of an embedding matrix, int64 `[N]`; -1 where unknown.

    `views` counts the clips of a video. `labels` is for the oracle and for measuring a detector;
    label-free detectors do not read it.
    """

    videos: Tensor
    groups: Tensor
    labels: Tensor
    views: Tensor

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, rows: slice) -> "Samples":
        fields = (self.videos, self.groups, self.labels, self.views)
        return Samples(*(each[rows] for each in fields))

    def gathered(self, gather: Callable[[Tensor], Tensor]) -> "Samples":
        """The rows of all processes, in one exchange."""
        return self._of(gather(self._columns()))

    def joined(self, other: "Samples") -> "Samples":
        """These rows, then the other's."""
        return self._of(torch.cat([self._columns(), other._columns()]))

    def _columns(self) -> Tensor:
        return torch.stack([self.videos, self.groups, self.labels, self.views], dim=1)

    @staticmethod
    def _of(columns: Tensor) -> "Samples":
        return Samples(*columns.T.contiguous())

    def same(self, other: "Samples", field: str) -> Tensor:
        """Bool `[N, M]`: known and equal in `field`."""
        mine, theirs = getattr(self, field), getattr(other, field)
        known = torch.where(mine >= 0, mine, torch.iinfo(mine.dtype).min)  # else equal to none
        return equal(known, theirs)


def distinct(videos: Tensor) -> tuple[Tensor, Tensor]:
    """The different videos of `[N]`, and where each of them first stands.

    A video comes twice where it stands in for a damaged one.
    """
    values, place = videos.unique(return_inverse=True)
    order = torch.arange(len(videos), device=videos.device)
    first = place.new_full((len(values),), len(videos)).scatter_reduce(0, place, order, "amin")
    return values, first
