"""The contract of a detector, what it sees of a step, the scores that it compares; the plain ones.

`adaptive` and `fnc` flag the most similar candidates of a step; other files hold the families that
know or keep more than the step.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vidcsl.registry import Option, Registry

# By how many views of the anchor's video, and how, a candidate is scored.
AGGREGATES: dict[str, Callable[[Tensor], Tensor]] = {
    "own": lambda scores: scores,  # the anchor alone
    "mean": lambda scores: scores.mean(dim=1, keepdim=True),
    "max": lambda scores: scores.amax(dim=1, keepdim=True),
}

DETECTORS: "Registry[type[Detector]]" = Registry(
    "FALSE_NEGATIVES.DETECTOR",
    default="none",
    meaning="which negatives are flagged as false",
    shared={
        "START": Option(
            0.25,
            "fraction of the training run before anything is flagged; labels, known_groups and "
            "teacher flag from the first step on",
            minimum=0,
            maximum=1,
        ),
        "RAMP": Option(
            0.5,
            "adaptive, memory, clusters: fraction of the training run over which the flagged "
            "fraction rises to its maximum",
            minimum=0,
            maximum=1,
        ),
        "CEILING": Option(
            0.1,
            "adaptive, memory: largest flagged fraction of the negatives; glofnd: the fraction "
            "that each threshold cuts off; teacher: the nearest fraction of the list",
            minimum=0,
            maximum=1,
        ),
        "AGGREGATE": Option(
            "auto",
            "how the views of the anchor's video score a candidate; auto: as the detector's paper "
            "does (adaptive mean, fnc max, others own)",
            ("auto", *AGGREGATES),
        ),
        "VOTERS": Option(
            0, "support views: further clips of each video that only score candidates", minimum=0
        ),
        "JUDGE": Option(
            "online",
            "scoring encoder: the encoder itself or a momentum encoder",
            ("online", "momentum"),
        ),
    },
)


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
        return Samples(self.videos[rows], self.groups[rows], self.labels[rows], self.views[rows])

    def gathered(self, gather: Callable[[Tensor], Tensor]) -> "Samples":
        """The rows of all processes."""
        columns = torch.stack([self.videos, self.groups, self.labels, self.views], dim=1)
        return Samples(*gather(columns).T.contiguous())  # one exchange instead of four

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
        # An unknown id becomes a number that equals no other: one comparison instead of three.
        known = torch.where(mine >= 0, mine, torch.iinfo(mine.dtype).min)
        return known[:, None] == theirs


@dataclass(frozen=True)
class Observation:
    """One step as a detector sees it, without gradients, the rows of this process.

    Args:
        videos: int64 `[B]`, the batch's videos.
        embeddings: `[B, S, P]`, the unit embeddings of all views of each.
        progress: fraction of the training run that is done, from 0 to 1.
    """

    videos: Tensor
    embeddings: Tensor
    progress: float


class Detector(nn.Module):
    """Flags false negatives; a treatment then decides what becomes of them.

    State goes into buffers, which checkpoints hold, and must be the same on all processes.

    Attributes:
        aggregate: how its paper scores a candidate by the views of the anchor's video, one of
            AGGREGATES.
        needs: what the training list must give: "labels", "groups", or "hierarchy" (more videos
            than the `clusters` of its finest level).
    """

    aggregate = "own"
    needs: tuple[str, ...] = ()

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
            progress: fraction of the training run that is done, from 0 to 1.

        Returns:
            Bool `[b, M]`, some of the negatives. A video depends on its own rows alone, which are
            all in one block.
        """
        raise NotImplementedError

    def flagged_and_sure(
        self,
        scores: Tensor,
        negatives: Tensor,
        anchors: Samples,
        candidates: Samples,
        progress: float,
    ) -> tuple[Tensor, Tensor]:
        """What `forward` returns, and which of these the detector is most certain of: all."""
        flagged = self(scores, negatives, anchors, candidates, progress)
        return flagged, flagged


def distinct(videos: Tensor) -> tuple[Tensor, Tensor]:
    """The different videos of `[N]`, and the first position of each.

    A batch holds a video twice where it replaces a damaged one.
    """
    # The first, as `tensor[videos] = rows` with repeats keeps any of them, which differs by device.
    values, place = videos.unique(return_inverse=True)
    order = torch.arange(len(videos), device=videos.device)
    first = place.new_full((len(values),), len(videos)).scatter_reduce(0, place, order, "amin")
    return values, first


def pooled(similarities: Tensor, *, views: int, aggregate: str) -> Tensor:
    """Scores `[b, M]` from the similarities of the anchors themselves.

    Each row is replaced by the mean or maximum over the `views` consecutive rows of its video.
    """
    if aggregate == "own" or views == 1:
        return similarities
    by_video = similarities.unflatten(0, (-1, views))  # [b / V, V, M]
    return AGGREGATES[aggregate](by_video).expand_as(by_video).flatten(0, 1)


@dataclass(frozen=True)
class SupportScores:
    """Scores from support views: other embeddings than those that the loss compares.

    Args:
        support: unit embeddings `[B, S, P]`: all views that score for each anchor video, the
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
        # A block holds whole videos, see `blockwise_loss`: its rows are those of these videos.
        videos = self.support[rows.start // self.views : -(-rows.stop // self.views)]
        if self.aggregate == "own":
            return videos[:, : self.views].flatten(0, 1) @ self.candidates.T
        if self.aggregate == "mean":  # the mean of cosines is the cosine with the mean
            scores = videos.mean(dim=1) @ self.candidates.T
        else:
            # View by view: the similarities of all support views at once would not fit memory.
            scores = videos[:, 0] @ self.candidates.T
            for view in range(1, videos.shape[1]):
                scores = scores.maximum(videos[:, view] @ self.candidates.T)
        return scores.repeat_interleave(self.views, dim=0)


# ----------------------------------------------------------------------
# The plain ones: no detector, and detectors by similarity alone.


@DETECTORS.register("none", "no pair")
class NoDetector(Detector):
    """Flags nothing: plain contrastive learning."""

    def forward(
        self,
        scores: Tensor,
        negatives: Tensor,
        anchors: Samples,
        candidates: Samples,
        progress: float,
    ) -> Tensor:
        """All False."""
        return torch.zeros_like(negatives)


@DETECTORS.register("adaptive", "the most similar candidates, a fraction that grows (ours)")
class AdaptiveSimilarity(Detector):
    """Flags the most similar fraction of an anchor's candidates, which grows with training.

    A candidate's score is the mean of its similarity to each view of the anchor's video, so that
    one chance resemblance counts less. Our schedule, in the spirit of Gupta et al. (AAAI 2023) and
    Huynh et al. (WACV 2022).

    Args:
        ceiling: largest fraction of the candidates; 1 / number of classes is a natural choice.
        start: fraction of the training run before anything is flagged, as similarities mean
            little then.
        ramp: fraction of the run over which the flagged fraction rises to the ceiling.
    """

    aggregate = "mean"

    def __init__(self, *, ceiling: float = 0.1, start: float = 0.25, ramp: float = 0.5) -> None:
        super().__init__()
        self.ceiling, self.start, self.ramp = ceiling, start, ramp

    def forward(
        self,
        scores: Tensor,
        negatives: Tensor,
        anchors: Samples,
        candidates: Samples,
        progress: float,
    ) -> Tensor:
        """Bool `[b, M]`."""
        # A fraction of the row's own negatives: with a queue, or several sources, rows differ.
        fraction = self.ceiling * risen(progress, start=self.start, ramp=self.ramp)
        return nearest(scores, negatives, (fraction * negatives.sum(dim=1)).long())


@DETECTORS.register(
    "fnc",
    "the nearest few above a threshold (Huynh et al., 2022)",
    NEAREST=Option(10, "fnc: most candidates flagged for an anchor", minimum=1),
    THRESHOLD=Option(0.7, "fnc: least similarity of a flagged pair", minimum=-1, maximum=1),
)
class NearestFew(Detector):
    """FNC: flags the most similar candidates, where they are similar enough.

    Huynh et al., "Boosting Contrastive Self-Supervised Learning with False Negative Cancellation",
    WACV 2022. A candidate's score is the largest of its similarities to the views of the anchor's
    video, support views among them. The paper flags from the first step on: START 0, where the
    default for all detectors is a quarter of the run.

    Args:
        nearest: k, most candidates flagged for an anchor.
        threshold: least score.
        start: fraction of the training run before anything is flagged.
    """

    aggregate = "max"

    def __init__(self, *, nearest: int = 10, threshold: float = 0.7, start: float = 0.0) -> None:
        super().__init__()
        self.nearest, self.threshold, self.start = nearest, threshold, start

    def forward(
        self,
        scores: Tensor,
        negatives: Tensor,
        anchors: Samples,
        candidates: Samples,
        progress: float,
    ) -> Tensor:
        """Bool `[b, M]`."""
        if progress < self.start:
            return torch.zeros_like(negatives)
        counts = negatives.sum(dim=1).clamp(max=self.nearest)
        return nearest(scores, negatives, counts) & (scores > self.threshold)


def risen(progress: float, *, start: float, ramp: float) -> float:
    """0 before `start`, 1 from `start + ramp` on, a straight line between."""
    if progress < start:
        return 0.0
    return min(1.0, (progress - start) / ramp) if ramp else 1.0


def nearest(scores: Tensor, eligible: Tensor, counts: Tensor) -> Tensor:
    """Bool `[b, M]`: the highest scores of each row among the eligible, `counts` `[b]` of them.

    Ties with the last of them are taken too: a choice among equals would not be the same on every
    device.
    """
    if not counts.any():
        return torch.zeros_like(eligible)
    masked = torch.where(eligible, scores, -torch.inf)
    # Rows want different numbers: one topk for the largest, then the score at each row's own rank.
    highest = masked.topk(int(counts.max()), dim=1).values  # the score of each rank, best first
    least = highest.gather(1, counts.clamp(min=1)[:, None] - 1)
    return eligible & (masked >= least) & (counts > 0)[:, None]


# ----------------------------------------------------------------------
# A detector that keeps a record.


@dataclass(frozen=True)
class FlaggedPair:
    """Two videos by their indices, their similarity, and whether they share their class."""

    anchor: int
    candidate: int
    similarity: float
    correct: bool


class RecordingDetector(Detector):
    """Flags what another detector flags and records the pairs of known classes; learns nothing."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector
        self.found: list[FlaggedPair] = []

    def learn(self, observation: Observation) -> None:
        """Do nothing: the detector's state stays as training left it."""

    def forward(
        self,
        scores: Tensor,
        negatives: Tensor,
        anchors: Samples,
        candidates: Samples,
        progress: float,
    ) -> Tensor:
        """The other detector's flags, bool `[b, M]`."""
        flagged: Tensor = self.detector(scores, negatives, anchors, candidates, progress)
        rows, columns = flagged.nonzero(as_tuple=True)
        own, other = anchors.labels[rows], candidates.labels[columns]
        known = (own >= 0) & (other >= 0)  # otherwise nobody knows whether the flag is correct
        columns_of_pair = (
            anchors.videos[rows],
            candidates.videos[columns],
            scores[rows, columns],
            own == other,
        )
        self.found += [
            FlaggedPair(*values)
            for values in zip(*(each[known].tolist() for each in columns_of_pair), strict=True)
        ]
        return flagged
