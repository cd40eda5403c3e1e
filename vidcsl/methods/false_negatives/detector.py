"""What every detector shares: samples, scores, counts, the contract, and the treatments."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from vidcsl.methods.losses import Pairs, count, equal

# ----------------------------------------------------------------------
# What is known of the rows that are compared.


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


# ----------------------------------------------------------------------
# How alike anchor and candidate are: what a detector looks at, block by block.

# By how many views of the anchor's video, and how, a candidate is scored.
AGGREGATES: dict[str, Callable[[Tensor], Tensor]] = {
    "own": lambda scores: scores,  # the anchor alone
    "mean": lambda scores: scores.mean(dim=1, keepdim=True),
    "max": lambda scores: scores.amax(dim=1, keepdim=True),
}


def pooled(similarities: Tensor, *, views: int, aggregate: str) -> Tensor:
    """Scores `[b, M]` of anchors whose similarities are given, `views` neighbours being a video.

    Each row is replaced by the mean or maximum over the rows of its video.
    """
    if aggregate == "own" or views == 1:
        return similarities
    by_video = similarities.unflatten(0, (-1, views))  # [b / V, V, M]
    return AGGREGATES[aggregate](by_video).expand_as(by_video).flatten(0, 1)


@dataclass(frozen=True)
class SupportScores:
    """Scores from a support set: other embeddings than those that the loss compares.

    Args:
        support: unit embeddings `[B, S, P]`: all views of each anchor video that vote, the
            anchors' own first.
        candidates: unit embeddings `[M, P]`, from the same network as the support.
        views: anchors of each video: its first views.
        aggregate: one of AGGREGATES.
    """

    support: Tensor
    candidates: Tensor
    views: int
    aggregate: str

    def __call__(self, rows: slice) -> Tensor:
        """`[b, M]`, for a block of whole videos."""
        videos = self.support[rows.start // self.views : -(-rows.stop // self.views)]
        if self.aggregate == "own":
            return videos[:, : self.views].flatten(0, 1) @ self.candidates.T
        if self.aggregate == "mean":  # the mean of cosines is the cosine with the mean
            scores = videos.mean(dim=1) @ self.candidates.T
        else:
            scores = videos[:, 0] @ self.candidates.T
            for view in range(1, videos.shape[1]):
                scores = scores.maximum(videos[:, view] @ self.candidates.T)
        return scores.repeat_interleave(self.views, dim=0)


# ----------------------------------------------------------------------
# How well a detector did, where labels are known.


def detection_counts(
    flagged: Tensor, negatives: Tensor, anchors: Samples, candidates: Samples, *, classes: int
) -> dict[str, Tensor]:
    """Counts of pairs for each class of anchors, int64 `[classes + 1]`, the last the unlabelled.

    Sums over blocks, steps and processes stay exact. `negatives`, `removed` (the
    flagged ones) and, over pairs whose two labels are known, `judged` (flagged), `right` (flagged
    and of the anchor's class) and `false_negatives` (of the anchor's class): precision = right /
    judged, recall = right / false_negatives.
    """
    same_class = anchors.same(candidates, "labels") & negatives
    labelled = anchors.labels >= 0
    pairs = {
        "negatives": count(negatives),
        "removed": count(flagged),
        "judged": torch.where(labelled, count(flagged & (candidates.labels >= 0)), 0),
        "right": count(flagged & same_class),
        "false_negatives": count(same_class),
    }
    place = torch.where(labelled, anchors.labels, classes)
    empty = place.new_zeros(classes + 1)
    return {name: empty.index_add(0, place, of_row) for name, of_row in pairs.items()}


# ----------------------------------------------------------------------
# What a detector is.


@dataclass(frozen=True)
class Observation:
    """One step as a detector sees it, without gradients, the rows of this process.

    Args:
        videos: int64 `[B]`, the batch's videos.
        embeddings: `[B, S, P]`, the unit embeddings of all views of each.
        progress: share of the training that is done, from 0 to 1.
    """

    videos: Tensor
    embeddings: Tensor
    progress: float


class Detector(nn.Module):
    """Points out false negatives: same content as the anchor, yet about to be pushed away.

    What is then done with them is the treatment. State is kept in buffers, which checkpoints hold,
    the same on all processes.

    Attributes:
        aggregate: the published way to score a candidate by the views of the anchor's video, see
            `scores.AGGREGATES`.
    """

    aggregate = "own"

    def learn(self, observation: Observation) -> None:
        """Update the state, on all processes alike; once a step, after its last block."""

    def forward(
        self,
        scores: Tensor,
        negatives: Tensor,
        anchors: Samples,
        candidates: Samples,
        progress: float,
    ) -> Tensor:
        """Which negatives are false.

        Args:
            scores: `[b, M]`, how alike anchor and candidate are, in [-1, 1].
            negatives: bool `[b, M]`, what the loss would push away; views of the anchor's own video
                never are.
            anchors, candidates: their samples, b and M of them.
            progress: share of the training that is done, from 0 to 1.

        Returns:
            Bool `[b, M]`, some of the negatives. A video depends on its own rows alone, which are
            all in one block.
        """
        raise NotImplementedError


# ----------------------------------------------------------------------
# What is done about the pairs that a detector flags: any treatment with any detector.

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
