"""The contract of a detector, what it sees of a step, and the scores that it compares."""

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

    def sure(self, flagged: Tensor, anchors: Samples, candidates: Samples) -> Tensor:
        """Which of the `flagged` pairs the detector is most certain of, bool `[b, M]`: all.

        Called right after `forward`, with what it returned.
        """
        return flagged


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
