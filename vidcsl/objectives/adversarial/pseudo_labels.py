"""Pseudo-labels: each video's cluster, under a number that outlives the next clustering."""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from vidcsl.objectives.false_negatives.clusters import Clusters


class PseudoLabels(Clusters):
    """Clusters of the training videos at several levels, as labels `[levels, videos]`.

    The embeddings of the training itself are clustered, once an epoch, into a hierarchy. AdvCL as
    published takes labels of an encoder that was pretrained on ImageNet instead, once and for all.
    As heads learn to name clusters, each new cluster gets the number of the old one that it shares
    most videos with, in the best assignment of all (Kuhn, 1955).
    """

    def _cluster(self, epoch: int) -> None:
        before = self.labels.clone()
        super()._cluster(epoch)
        for level, count in enumerate(self.clusters):
            renamed = matched(before[level], self.labels[level], count=count)
            self.labels[level] = renamed

    def of(self, videos: Tensor) -> Tensor:
        """`[levels, N]`; -1 where unknown so far."""
        return self.labels[:, videos]


def matched(before: Tensor, after: Tensor, *, count: int) -> Tensor:
    """The labels `after` `[n]`, renamed so that as many as possible stay as `before`; -1: unknown.

    Args:
        before, after: int64 `[n]`, below `count`.
        count: how many clusters there are.
    """
    from scipy.optimize import linear_sum_assignment  # slow to import

    both = (before >= 0) & (after >= 0)
    shared = np.zeros((count, count), dtype=np.int64)
    np.add.at(shared, (after[both].cpu().numpy(), before[both].cpu().numpy()), 1)
    new, old = linear_sum_assignment(shared, maximize=True)
    names: Sequence[int] = dict(zip(new.tolist(), old.tolist(), strict=True))  # type: ignore[assignment]
    table = after.new_tensor([names[number] for number in range(count)])
    return table[after.clamp(min=0)].where(after >= 0, -1)
