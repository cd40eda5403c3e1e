"""SimCLR and SupCon, and what all contrastive methods share."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from vidcsl.distributed import DistributedContext
from vidcsl.errors import UserError
from vidcsl.methods.false_negatives import (
    Detector,
    Observation,
    Samples,
    SupportScores,
    Treatment,
    detection_counts,
    pooled,
)
from vidcsl.methods.losses import Pairs, RowLoss, blockwise_loss
from vidcsl.methods.method import ClipBatch, Method, Metric, MomentumEncoder, Ratio, embed

# ----------------------------------------------------------------------
# False negatives of one step: found block by block, and judged where labels are known.


@dataclass
class Detection:
    """A detector at work on the blocks of one step.

    Args:
        detector: see `false_negatives`.
        rows, columns: the samples of this process's anchors and of all candidates.
        pairs: what each candidate is to each anchor, `(anchors, candidates) -> Pairs`.
        scores: `(similarities of the rows, rows) -> [b, M]`, what the detector looks at.
        classes: how many labels there are.
        progress: share of the training that is done.
    """

    detector: Detector
    rows: Samples
    columns: Samples
    pairs: Callable[[Samples, Samples], Pairs]
    scores: Callable[[Tensor, slice], Tensor]
    classes: int
    progress: float
    counts: dict[str, Tensor] = field(default_factory=dict)

    def __call__(self, similarities: Tensor, rows: slice) -> tuple[Pairs, Tensor]:
        """The pairs of a block of whole videos, untreated, and which are flagged, `[b, M]`."""
        anchors = self.rows[rows]
        untreated = self.pairs(anchors, self.columns)
        negatives = untreated.negatives()
        scores = self.scores(similarities, rows)
        flagged = self.detector(scores, negatives, anchors, self.columns, self.progress)
        found = detection_counts(flagged, negatives, anchors, self.columns, classes=self.classes)
        for name, count in found.items():
            self.counts[name] = count + self.counts.get(name, 0)
        return untreated, flagged

    def metrics(self) -> dict[str, Metric]:
        """The share of the negatives that was flagged, and how often rightly."""
        counts = self.counts
        return {
            "removed": Ratio(counts["removed"], counts["negatives"]),
            "precision": Ratio(counts["right"], counts["judged"]),
            "recall": Ratio(counts["right"], counts["false_negatives"]),
        }


# ----------------------------------------------------------------------
# What methods share that tell positives from negatives: the walk over all pairs.


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
        distributed: DistributedContext | None = None,
    ) -> None:
        super().__init__(encoder, distributed=distributed)
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
            "undefined_rows": (~defined).sum() * self.distributed.size,
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
        everyones = self.distributed.total(defined.sum()).clamp(min=1)
        return total * self.distributed.size / everyones

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
        if len(batch.videos) * self.distributed.size < 2:
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
        rows, gather = batch.samples(learning), self.distributed.gather
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


# ----------------------------------------------------------------------
# SimCLR on clips: the other clips of a video are the positives.
#
# Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", ICML 2020.
# On video: Qian et al. (CVRL), CVPR 2021; with more than two clips, Feichtenhofer et al., CVPR
# 2021.


class SimCLR(BatchContrast):
    """Pulls the clips of a video together, pushes all other videos away."""

    def pairs(self, anchors: Samples, candidates: Samples) -> Pairs:
        """Positives are the other clips of the video; the anchor itself is left out."""
        video = anchors.same(candidates, "videos")
        itself = video & anchors.same(candidates, "views")
        return Pairs(video & ~itself, itself)


# ----------------------------------------------------------------------
# Supervised contrastive learning: clips of the same class are the positives.
#
# Khosla et al., "Supervised Contrastive Learning", NeurIPS 2020, equation 2 (sum outside the log),
# without the factor tau / 0.07 of the released code.


class SupCon(BatchContrast):
    """Pulls the clips of a class together; videos without a label keep their own clips only."""

    def pairs(self, anchors: Samples, candidates: Samples) -> Pairs:
        """Positives are the clips of the class and of the video; the anchor itself is left out."""
        video = anchors.same(candidates, "videos")
        itself = video & anchors.same(candidates, "views")
        return Pairs((video | anchors.same(candidates, "labels")) & ~itself, itself)
