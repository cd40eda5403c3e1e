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
        return self.map(lambda ids: ids[rows])

    def map(self, change: Callable[[Tensor], Tensor]) -> "Samples":
        """The same change made to every field."""
        fields = (self.videos, self.groups, self.labels, self.views)
        return Samples(*(change(each) for each in fields))

    def joined(self, other: "Samples") -> "Samples":
        """These rows, then the other's."""
        return Samples(
            torch.cat([self.videos, other.videos]),
            torch.cat([self.groups, other.groups]),
            torch.cat([self.labels, other.labels]),
            torch.cat([self.views, other.views]),
        )

    def same(self, other: "Samples", field: str) -> Tensor:
        """Bool `[N, M]`: known and equal in `field`."""
        mine, theirs = getattr(self, field), getattr(other, field)
        known = torch.where(mine >= 0, mine, torch.iinfo(mine.dtype).min)  # else equal to none
        return equal(known, theirs)
