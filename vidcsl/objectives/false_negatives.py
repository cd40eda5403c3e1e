"""Which candidates are false negatives: same content as the anchor, yet about to be pushed away.

A detector only points them out; what is then done with them is the treatment. All detectors share
one signature, `(similarities, anchors, candidates, progress) -> bool [N, M]`, and none ever flags
a view of the anchor's own video: those are positives already.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from vidcsl.objectives.losses import Pairs


@dataclass(frozen=True)
class Samples:
    """What is known of each row of an embedding matrix, int64 `[N]`; -1 where unknown.

    `labels` is for the oracle and for measuring a detector; label-free detectors do not read it.
    """

    videos: Tensor
    groups: Tensor
    labels: Tensor

    def __getitem__(self, rows: slice) -> "Samples":
        """Some of the rows."""
        return Samples(self.videos[rows], self.groups[rows], self.labels[rows])

    def same(self, other: "Samples", field: str) -> Tensor:
        """Bool `[N, M]`: known and equal in `field`."""
        mine, theirs = getattr(self, field), getattr(other, field)
        return (mine[:, None] == theirs[None, :]) & (mine[:, None] >= 0)


class Detector(Protocol):
    """Points out false negatives.

    Called with cosines `[N, M]`, the samples of the N anchors and M candidates, and the share of
    the training that is done, from 0 to 1. The N anchors are a block of all of them, with all
    views of each of its videos: what is flagged for a video must depend on its own rows alone.
    """

    def __call__(
        self, similarities: Tensor, anchors: Samples, candidates: Samples, progress: float
    ) -> Tensor:
        """Bool `[N, M]`: True where the candidate is no negative of the anchor."""


def no_detector(
    similarities: Tensor, anchors: Samples, candidates: Samples, progress: float
) -> Tensor:
    """Flags nothing: plain contrastive learning."""
    return torch.zeros_like(similarities, dtype=torch.bool)


def label_oracle(
    similarities: Tensor, anchors: Samples, candidates: Samples, progress: float
) -> Tensor:
    """Flags other videos of the anchor's class: the upper bound of any detector."""
    return anchors.same(candidates, "labels") & ~anchors.same(candidates, "videos")


def known_groups(
    similarities: Tensor, anchors: Samples, candidates: Samples, progress: float
) -> Tensor:
    """Flags clips cut from the anchor's source video, as CoCLR does (Han et al., 2020)."""
    return anchors.same(candidates, "groups") & ~anchors.same(candidates, "videos")


@dataclass(frozen=True)
class AdaptiveSimilarity:
    """Flags the most similar share of an anchor's candidates, a share that grows with training.

    The views of the anchor's video vote together: a candidate's score is the mean (or maximum) of
    its similarity to each of them, so that one chance resemblance counts less. Our schedule, in
    the spirit of Gupta et al. (AAAI 2023) and Huynh et al. (WACV 2022).

    Args:
        ceiling: largest share of the candidates; 1 / number of classes is a natural choice.
        start: share of the training before anything is flagged, as similarities mean little then.
        ramp: share of the training over which the flagged share rises to the ceiling.
        aggregate: "mean" or "max" over the anchor's views.
    """

    ceiling: float = 0.1
    start: float = 0.25
    ramp: float = 0.5
    aggregate: str = "mean"

    def share(self, progress: float) -> float:
        """Flagged share of the candidates at `progress` in [0, 1]."""
        if progress < self.start:
            return 0.0
        risen = (progress - self.start) / self.ramp if self.ramp else 1.0
        return self.ceiling * min(1.0, risen)

    def __call__(
        self, similarities: Tensor, anchors: Samples, candidates: Samples, progress: float
    ) -> Tensor:
        """Bool `[N, M]`; the same number of candidates for each anchor."""
        own = anchors.same(candidates, "videos")
        flagged = torch.zeros_like(own)
        count = int(self.share(progress) * int((~own).sum(dim=1).min()))
        if count == 0:
            return flagged
        scores = view_scores(similarities.detach(), anchors.videos, self.aggregate)
        top = scores.masked_fill(own, -torch.inf).topk(count, dim=1).indices
        return flagged.scatter(1, top, True)


def view_scores(similarities: Tensor, videos: Tensor, aggregate: str) -> Tensor:
    """Each row replaced by the mean or maximum over the rows of the same video, `[N, M]`."""
    _, video = videos.unique(return_inverse=True)
    count = int(video.max()) + 1
    reduce = {"mean": "mean", "max": "amax"}[aggregate]
    pooled = similarities.new_zeros(count, similarities.shape[1])
    index = video[:, None].expand_as(similarities)
    return pooled.scatter_reduce(0, index, similarities, reduce, include_self=False)[video]


def eliminate(pairs: Pairs, flagged: Tensor) -> Pairs:
    """Drop the flagged from the denominator."""
    return replace(pairs, ignored=pairs.ignored | (flagged & ~pairs.positives))


def attract(pairs: Pairs, flagged: Tensor) -> Pairs:
    """Make the flagged positives; they stay in the denominator (FNC's released form)."""
    return replace(pairs, positives=pairs.positives | (flagged & ~pairs.ignored))


DETECTORS: dict[str, Callable[..., Detector]] = {
    "none": lambda **_: no_detector,
    "labels": lambda **_: label_oracle,
    "known_groups": lambda **_: known_groups,
    "adaptive": AdaptiveSimilarity,
}
TREATMENTS: dict[str, Callable[[Pairs, Tensor], Pairs]] = {
    "eliminate": eliminate,
    "attract": attract,
}


def detection_counts(flagged: Tensor, anchors: Samples, candidates: Samples) -> dict[str, Tensor]:
    """Pair counts to judge a detector by; sums over steps and ranks stay exact.

    `candidate_pairs` (other videos), `removed_pairs` (flagged ones) and, over anchors whose label
    is known, `judged_pairs` (flagged), `right_pairs` (flagged and of the anchor's class) and
    `false_negative_pairs` (of the anchor's class): precision = right / judged, recall = right /
    false_negative.
    """
    other = ~anchors.same(candidates, "videos")
    known = (anchors.labels >= 0)[:, None] & (candidates.labels >= 0)[None, :]
    same_class = anchors.same(candidates, "labels") & other
    pairs = {
        "candidate_pairs": other,
        "removed_pairs": flagged,
        "judged_pairs": flagged & known,
        "right_pairs": flagged & same_class,
        "false_negative_pairs": same_class,
    }
    return {name: mask.sum() for name, mask in pairs.items()}
