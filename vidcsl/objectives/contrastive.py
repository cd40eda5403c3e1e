"""What methods share that tell positives from negatives: the walk over all pairs."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vidcsl.errors import UserError
from vidcsl.objectives.blockwise import blockwise_loss
from vidcsl.objectives.detection import Detection
from vidcsl.objectives.ema import MomentumEncoder
from vidcsl.objectives.false_negatives import (
    Detector,
    Observation,
    Samples,
    SupportScores,
    Treatment,
    pooled,
)
from vidcsl.objectives.losses import Pairs, RowLoss
from vidcsl.objectives.method import ClipBatch, Method, embed
from vidcsl.objectives.metrics import Metric
from vidcsl.objectives.world import World


@dataclass(frozen=True)
class Contrast:
    """What is compared with what in one step: the rows of this process, the candidates of all.

    Args:
        anchors, candidates: unit embeddings `[B * V, P]` and `[M, P]`.
        rows, columns: their samples.
        support: unit embeddings `[B, S, P]` that vote on false negatives, the anchors' own first.
        voted_on: unit embeddings `[M, P]` of the candidates, from the support's network.
    """

    anchors: Tensor
    candidates: Tensor
    rows: Samples
    columns: Samples
    support: Tensor
    voted_on: Tensor


class ContrastiveMethod(Method):
    """Pulls each clip to its positives and pushes it from its negatives, the false ones treated.

    Each process computes the rows of its own anchors against the candidates of all processes.
    Candidates carry gradients, and rows are weighted so that the average over processes, which
    DDP takes, is the loss and the gradient of one process on the joined batch.

    Args:
        encoder: clips -> features.
        projector: features -> embeddings, before normalisation.
        loss: see `losses`.
        detector, treatment: see `false_negatives`.
        teacher: a momentum encoder, for the methods that learn from one and for a detector that
            looks at its embeddings.
        aggregate: how the views of a video vote on a candidate; by default as the detector's
            authors do.
        judge: whose embeddings the detector looks at, "online" or "momentum".
        voters: how many of each video's last views vote only, and learn nothing.
        classes: how many labels there are; detectors are judged for each.
        world: the processes that train together.
    """

    def __init__(
        self,
        encoder: nn.Module,
        projector: nn.Module,
        *,
        loss: RowLoss,
        detector: Detector,
        treatment: Treatment,
        teacher: MomentumEncoder | None = None,
        aggregate: str | None = None,
        judge: str = "online",
        voters: int = 0,
        classes: int = 0,
        world: World | None = None,
    ) -> None:
        super().__init__(encoder, world=world)
        self.projector, self.teacher = projector, teacher
        self.loss, self.detector, self.treatment = loss, detector, treatment
        self.aggregate = aggregate or detector.aggregate
        self.judge, self.voters, self.classes = judge, voters, classes

    def contrast(self, batch: ClipBatch) -> Contrast:
        """What is compared with what."""
        raise NotImplementedError

    def pairs(self, anchors: Samples, candidates: Samples) -> Pairs:
        """What each candidate is to each anchor, before false negatives are treated."""
        raise NotImplementedError

    def forward(self, batch: ClipBatch) -> dict[str, Metric]:
        """Loss over all learning views of the batch, and how well the detector did."""
        learning = batch.clips.shape[1] - self.voters
        contrast = self.contrast(batch)
        described = self.describe(contrast.anchors.unflatten(0, (-1, learning)), batch)
        detection = self.detection(contrast, batch)
        total, defined = blockwise_loss(
            contrast.anchors,
            contrast.candidates,
            loss=self.loss,
            pairs=lambda similarities, rows: self.treatment(*detection(similarities, rows)),
            views=learning,
        )
        self.detector.learn(Observation(batch.videos, contrast.support, batch.progress))
        return {
            "loss": self.averaged(total, defined),
            "undefined_rows": (~defined).sum() * self.world.size,
            **detection.metrics(),
            **described,
        }

    def detection(self, contrast: Contrast, batch: ClipBatch) -> Detection:
        """The detector, about to look for false negatives in this contrast."""
        return Detection(
            self.detector,
            contrast.rows,
            contrast.columns,
            self.pairs,
            self._scores(contrast, batch.clips.shape[1] - self.voters),
            self.classes,
            batch.progress,
        )

    def averaged(self, total: Tensor, defined: Tensor) -> Tensor:
        """The mean over rows of all processes, of this one's sum; which DDP's average makes it.

        Rows are weighted alike over all processes, however many are defined on each.
        """
        everyones = self.world.total(defined.sum()).clamp(min=1)
        return total * self.world.size / everyones

    def after_step(self, progress: float) -> None:
        """Let the momentum encoder follow."""
        if self.teacher:
            self.teacher.follow(self.encoder, self.projector, progress=progress)

    def encoder_replaced(self) -> None:
        """The momentum encoder starts from the new weights too."""
        if self.teacher:
            self.teacher.restart(self.encoder, self.projector)

    def embed(self, clips: Tensor) -> Tensor:
        """Unit embeddings `[B, V, P]` of clips `[B, V, 3, T, S, S]`."""
        return embed(nn.Sequential(self.encoder, self.projector), clips)

    def taught(self, clips: Tensor) -> Tensor:
        """The momentum encoder's unit embeddings `[B, V, P]`, without gradient."""
        assert self.teacher is not None
        return embed(self.teacher, clips)

    def require_videos(self, batch: ClipBatch) -> None:
        """Raise a UserError where the only video of a batch would have no negatives."""
        if len(batch.videos) * self.world.size < 2:
            raise UserError("a batch of one video has no negatives: set TRAIN.BATCH to at least 2")

    @torch.no_grad()
    def _scores(self, contrast: Contrast, views: int) -> Callable[[Tensor, slice], Tensor]:
        """`(similarities of the rows, rows) -> [b, M]`, what the detector looks at."""
        if self.judge == "online" and not self.voters:
            return lambda similarities, _rows: pooled(
                similarities, views=views, aggregate=self.aggregate
            )
        support = SupportScores(
            contrast.support, contrast.voted_on, views=views, aggregate=self.aggregate
        )
        return lambda _similarities, rows: support(rows)


class BatchContrast(ContrastiveMethod):
    """Candidates are the learning views of the whole batch, on all processes."""

    def contrast(self, batch: ClipBatch) -> Contrast:
        """Every view against every view."""
        self.require_videos(batch)
        learning = batch.clips.shape[1] - self.voters
        return self.contrast_of(self.embed(batch.clips[:, :learning]), batch)

    def contrast_of(self, embeddings: Tensor, batch: ClipBatch) -> Contrast:
        """Every learning view against every other, by their unit embeddings `[B, V, P]`."""
        learning = embeddings.shape[1]
        rows, gather = batch.samples(learning), self.world.gather
        support = self._support(batch, embeddings.detach(), learning)
        anchors = embeddings.flatten(0, 1)
        candidates = gather(anchors)
        same = self.judge == "online"  # the voters are of one network with the anchors
        voted_on = candidates.detach() if same else gather(support[:, :learning].flatten(0, 1))
        return Contrast(
            anchors=anchors,
            candidates=candidates,
            rows=rows,
            columns=rows.gathered(gather),
            support=support,
            voted_on=voted_on,
        )

    @torch.no_grad()
    def _support(self, batch: ClipBatch, embeddings: Tensor, learning: int) -> Tensor:
        if self.judge == "momentum":
            return self.taught(batch.clips)
        if not self.voters:
            return embeddings
        return torch.cat([embeddings, self.embed(batch.clips[:, learning:])], dim=1)
