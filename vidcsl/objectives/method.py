"""What a pretraining method is, and what the contrastive ones share."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidcsl.objectives.blockwise import blockwise_loss
from vidcsl.objectives.false_negatives import Detector, Samples, detection_counts
from vidcsl.objectives.losses import Pairs, RowLoss, alignment, at_least_float32, uniformity


@dataclass(frozen=True)
class ClipBatch:
    """Augmented views of a batch of videos.

    Args:
        clips: float `[B, V, 3, T, S, S]` in [0, 1].
        labels, groups, videos: int64 `[B]`; -1 where unknown.
        progress: share of the training that is done, from 0 to 1.
    """

    clips: Tensor
    labels: Tensor
    groups: Tensor
    videos: Tensor
    progress: float = 0.0


class World(Protocol):
    """The processes that train together: how their tensors meet."""

    rank: int
    size: int

    def gather(self, tensor: Tensor) -> Tensor:
        """`[N, ...]` of each process to `[size * N, ...]` in rank order, keeping gradients."""

    def total(self, tensor: Tensor) -> Tensor:
        """Sum over processes, without gradient."""


class Alone:
    """A world of one process."""

    rank, size = 0, 1

    def gather(self, tensor: Tensor) -> Tensor:
        """The tensor itself."""
        return tensor

    def total(self, tensor: Tensor) -> Tensor:
        """The tensor itself."""
        return tensor


class Method(nn.Module):
    """An objective with its heads and state around an encoder, which is the part that is kept."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, batch: ClipBatch) -> dict[str, Tensor]:
        """`{"loss": scalar, ...}`; every other value is a detached scalar to be logged.

        Names ending in `_pairs`, `_rows` are counts (summed over steps and processes), all others
        are averaged.
        """
        raise NotImplementedError


class ContrastiveMethod(Method):
    """Embeds every view and contrasts it with the views of all other videos, on all processes.

    Each process computes the rows of its own anchors against the candidates of all processes.
    Candidates carry gradients, and rows are weighted so that the average over processes, which
    DDP takes, is the loss and the gradient of one process on the joined batch.

    Args:
        encoder: clips -> features.
        projector: features -> embeddings, before normalisation.
        loss: see `losses`.
        detector, treatment: see `false_negatives`.
        world: the processes that train together.
    """

    def __init__(
        self,
        encoder: nn.Module,
        projector: nn.Module,
        *,
        loss: RowLoss,
        detector: Detector,
        treatment: Callable[[Pairs, Tensor], Pairs],
        world: World | None = None,
    ) -> None:
        super().__init__(encoder)
        self.projector = projector
        self.loss, self.detector, self.treatment = loss, detector, treatment
        self.world = world or Alone()

    def positives(self, anchors: Samples, candidates: Samples) -> Tensor:
        """Bool `[N, M]`: which candidates are positives (the anchor itself is taken out later)."""
        raise NotImplementedError

    def forward(self, batch: ClipBatch) -> dict[str, Tensor]:
        """Loss over all views of the batch, and how well the detector did."""
        views = batch.clips.shape[1]
        embeddings = self.embed(batch.clips)  # [B * V, P]
        anchors = _rows(batch)
        gather = self.world.gather
        candidates = Samples(gather(anchors.videos), gather(anchors.groups), gather(anchors.labels))
        first = self.world.rank * len(embeddings)  # the column of this process's first anchor
        counts: dict[str, Tensor] = {}

        def pairs(similarities: Tensor, rows: slice) -> Pairs:
            block = anchors[rows]
            flagged = self.detector(similarities, block, candidates, batch.progress)
            for name, count in detection_counts(flagged, block, candidates).items():
                counts[name] = counts.get(name, 0) + count
            itself = _diagonal(similarities, offset=first + rows.start)
            untreated = Pairs(self.positives(block, candidates) & ~itself, itself)
            return self.treatment(untreated, flagged)

        total, defined = blockwise_loss(
            embeddings, gather(embeddings), loss=self.loss, pairs=pairs, views=views
        )
        # Rows are weighted alike over all processes, however many are defined on each.
        loss = total * self.world.size / self.world.total(defined.sum()).clamp(min=1)
        return {
            "loss": loss,
            "undefined_rows": (~defined).sum(),
            **_geometry(embeddings.detach(), views),
            **counts,
        }

    def embed(self, clips: Tensor) -> Tensor:
        """Unit embeddings `[B * V, P]` of clips `[B, V, 3, T, S, S]`."""
        features = self.encoder(clips.flatten(0, 1))
        return F.normalize(at_least_float32(self.projector(features)), dim=1)


def _diagonal(matrix: Tensor, *, offset: int) -> Tensor:
    rows, columns = (torch.arange(size, device=matrix.device) for size in matrix.shape)
    return columns[None, :] == rows[:, None] + offset


def _rows(batch: ClipBatch) -> Samples:
    views = batch.clips.shape[1]
    ids = (batch.videos, batch.groups, batch.labels)
    return Samples(*(each.repeat_interleave(views) for each in ids))


@torch.no_grad()
def _geometry(embeddings: Tensor, views: int) -> dict[str, Tensor]:
    by_video = embeddings.unflatten(0, (-1, views))
    if views < 2 or len(by_video) < 2:
        return {}
    return {
        "alignment": alignment(by_video[:, 0], by_video[:, 1]),
        "uniformity": uniformity(by_video[:, 0]),
    }
