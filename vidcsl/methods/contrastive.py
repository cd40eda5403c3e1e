"""Contrastive methods: one step from embeddings to the loss, SimCLR and SupCon.

The step in order: `contrast` embeds the views; `StepPairs` walks over blocks of anchors, where
`pairs` gives positives and negatives, the detector flags false negatives and the treatment changes
the pairs; `blockwise_loss` compares them.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vidcsl.distributed import DistributedContext
from vidcsl.methods.false_negatives import (
    FalseNegatives,
    Observation,
    Samples,
    SupportScores,
    detection_counts,
    pooled,
)
from vidcsl.methods.losses import Pairs, RowLoss, blockwise_loss, nt_xent
from vidcsl.methods.method import METHODS, ClipBatch, Method, MomentumEncoder, embed
from vidcsl.methods.metrics import Metric, Ratio


@dataclass(frozen=True)
class Contrast:
    """What is compared with what in one step: the rows of this process, the candidates of all.

    Args:
        anchors, candidates: unit embeddings `[B * V, P]` and `[M, P]`.
        rows, columns: their samples.
        support: unit embeddings `[B, S, P]` that score candidates, by the scoring encoder: the
            anchors' own views first, then the support views.
        scored: unit embeddings `[M, P]` of the candidates, by the scoring encoder.
    """

    anchors: Tensor
    candidates: Tensor
    rows: Samples
    columns: Samples
    support: Tensor
    scored: Tensor


class ContrastiveMethod(Method):
    """Pulls each clip to its positives and pushes it from its negatives, the false ones treated.

    Each process computes the rows of its own anchors against the candidates of all processes.
    Candidates carry gradients, and rows are weighted so that the average over processes, which
    DDP takes, is the loss and the gradient of one process on the joined batch.

    Args:
        encoder: clips -> features.
        projector: features -> embeddings, before normalisation.
        loss: an entry of LOSSES, its options bound.
        false_negatives: detector, treatment, and how candidates are scored.
        momentum_encoder: for the methods that learn from one and for a detector that scores by it.
        classes: number of labels; detectors are evaluated for each.
        distributed: the processes that train together.
    """

    parts: tuple[str, ...] = ("projector",)
    one_mean = True  # whether the method's loss is one mean, or means that are averaged

    def __init__(
        self,
        encoder: nn.Module,
        projector: nn.Module,
        *,
        loss: RowLoss,
        false_negatives: FalseNegatives | None = None,
        momentum_encoder: MomentumEncoder | None = None,
        classes: int = 0,
        distributed: DistributedContext | None = None,
    ) -> None:
        super().__init__(encoder, distributed=distributed)
        self.projector, self.loss, self.classes = projector, loss, classes
        # Its weights are in checkpoints under the name "teacher".
        self.teacher = momentum_encoder
        chosen = false_negatives or FalseNegatives()
        self.detector, self.treatment = chosen.detector, chosen.treatment
        auto = chosen.aggregate == "auto"
        self.aggregate = self.detector.aggregate if auto else chosen.aggregate
        self.judge, self.voters = chosen.judge, chosen.voters

    def contrast(self, batch: ClipBatch) -> Contrast:
        """What is compared with what."""
        raise NotImplementedError

    def loss_of_chance(self, *, videos: int, clips: int) -> float | None:
        """Of NT-Xent between equal embeddings: the logarithm of the number of candidates.

        Of all of them, as without a detector: with eliminated false negatives it is a little less.
        """
        if not self.one_mean or getattr(self.loss, "func", self.loss) is not nt_xent:
            return None
        return math.log(self.candidates(videos=videos, clips=clips))

    def candidates(self, *, videos: int, clips: int) -> int:
        """With how many clips an anchor is compared."""
        raise NotImplementedError

    def pairs(self, anchors: Samples, candidates: Samples) -> Pairs:
        """What each candidate is to each anchor, before false negatives are treated."""
        raise NotImplementedError

    def forward(self, batch: ClipBatch) -> dict[str, Metric]:
        """Loss over all learning views of the batch, and how well the detector did."""
        learning = batch.clips.shape[1] - self.voters
        contrast = self.contrast(batch)
        described = self.describe(contrast.anchors.unflatten(0, (-1, learning)), batch)
        pairs = StepPairs(self, contrast, batch)
        total, defined = blockwise_loss(
            contrast.anchors, contrast.candidates, loss=self.loss, pairs=pairs, views=learning
        )
        # After the last block: all blocks of a step are flagged by one state of the detector.
        self.detector.learn(Observation(batch.videos, contrast.support, batch.progress))
        without = (~defined).sum() * self.distributed.size
        return {
            "loss": self.averaged(total, defined),
            "anchors_without_negatives": without,
            "undefined_rows": without,  # its older name, for readers of the log
            **pairs.metrics(),
            **described,
        }

    def averaged(self, total: Tensor, defined: Tensor) -> Tensor:
        """The mean over rows of all processes, from this one's sum, once DDP has averaged it.

        Rows are weighted alike over all processes, however many are defined on each.
        """
        # DDP divides the sum of all gradients by the number of processes; here that is undone.
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

    def embed_by_momentum(self, clips: Tensor) -> Tensor:
        """The momentum encoder's unit embeddings `[B, V, P]`, without gradient."""
        assert self.teacher is not None
        return embed(self.teacher, clips)


class StepPairs:
    """The pairs of one step, block by block: detector, then treatment, then `Pairs` for the loss.

    No other code lets a flagged pair reach a loss. It counts as it goes how well the detector did.

    Args:
        method: whose roles of pairs, detector and treatment.
        contrast: the embeddings and samples of the step.
        batch: the clips that were embedded.
    """

    def __init__(self, method: ContrastiveMethod, contrast: Contrast, batch: ClipBatch) -> None:
        self.method, self.contrast, self.batch = method, contrast, batch
        self.views = batch.clips.shape[1] - method.voters
        self.counts: dict[str, Tensor] = {}
        # Flagged, and the surest of them, between all clean views, where `find_all` was called.
        self.found: tuple[Tensor, Tensor] | None = None

    def __call__(self, similarities: Tensor, rows: slice) -> Pairs:
        """The pairs of a block of whole videos, `[b, M]`."""
        return self.method.treatment(*self._detected(similarities, rows))

    @torch.no_grad()
    def _detected(self, similarities: Tensor, rows: slice) -> tuple[Pairs, Tensor, Tensor]:
        """The pairs of a block, untreated, which of them are flagged, and the surest of these."""
        method, contrast = self.method, self.contrast
        anchors, candidates = contrast.rows[rows], contrast.columns
        pairs = method.pairs(anchors, candidates)
        negatives = pairs.negatives()
        if method.judge == "online" and not method.voters:
            # The loss has these similarities already.
            scores = pooled(similarities, views=self.views, aggregate=method.aggregate)
        else:
            scores = SupportScores(
                contrast.support, contrast.scored, views=self.views, aggregate=method.aggregate
            )(rows)
        # The detector sees negatives alone: a positive is never flagged, whatever its score.
        flagged, sure = method.detector.flagged_and_sure(
            scores, negatives, anchors, candidates, self.batch.progress
        )
        counts = detection_counts(flagged, negatives, anchors, candidates, classes=method.classes)
        for name, of_block in counts.items():
            self.counts[name] = of_block + self.counts.get(name, 0)
        return pairs, flagged, sure

    def find_all(self) -> None:
        """Flag between all views of the step at once, for `among`; the detector learns.

        This holds all pairs of a batch. An attack in the step bounds the batch long before they do.
        """
        anchors, candidates = self.contrast.anchors.detach(), self.contrast.candidates.detach()
        with torch.autocast(anchors.device.type, enabled=False):
            everything = slice(0, len(anchors))
            _, flagged, sure = self._detected(anchors @ candidates.T, everything)
            self.found = flagged, sure
            self.method.detector.learn(
                Observation(self.batch.videos, self.contrast.support, self.batch.progress)
            )

    def among(self, sources: list[int]) -> Pairs:
        """The pairs among V' views that were made from the clean views `sources`, after `find_all`.

        Perturbed clips would fool the detector, so a pair is flagged where its clean views are.
        """
        assert self.found is not None
        rows = self.batch.samples(len(sources))
        pairs = self.method.pairs(rows, rows.gathered(self.method.distributed.gather))
        masks = []
        for mask in self.found:
            by_view = mask.unflatten(0, (-1, self.views)).unflatten(2, (-1, self.views))
            of_sources = by_view[:, sources][..., sources].flatten(2, 3).flatten(0, 1)
            masks.append(of_sources & pairs.negatives())
        return self.method.treatment(pairs, *masks)

    def metrics(self) -> dict[str, Metric]:
        """The flagged fraction of the negatives, and the detector's precision and recall."""
        counts = self.counts
        flagged = Ratio(counts["flagged"], counts["negatives"])
        return {
            "flagged": flagged,
            "removed": flagged,  # its older name, for readers of the log
            "precision": Ratio(counts["correct"], counts["checked"]),
            "recall": Ratio(counts["correct"], counts["false_negatives"]),
        }


class BatchContrast(ContrastiveMethod):
    """Candidates are the learning views of the whole batch, on all processes."""

    def candidates(self, *, videos: int, clips: int) -> int:
        """All but the anchor."""
        return videos * clips - 1

    def contrast(self, batch: ClipBatch) -> Contrast:
        """Every view against every view."""
        self.require_videos(batch)
        learning = batch.clips.shape[1] - self.voters
        return self.contrast_of(self.embed(batch.clips[:, :learning]), batch)

    def contrast_of(self, embeddings: Tensor, batch: ClipBatch) -> Contrast:
        """Every learning view against every other, by their unit embeddings `[B, V, P]`."""
        learning, gather = embeddings.shape[1], self.distributed.gather
        rows, anchors = batch.samples(learning), embeddings.flatten(0, 1)
        candidates = gather(anchors)  # with gradients: each view is a negative on all processes
        with torch.no_grad():
            if self.judge == "momentum":
                support = self.embed_by_momentum(batch.clips)
                scored = gather(support[:, :learning].flatten(0, 1))
            else:
                support, scored = embeddings.detach(), candidates.detach()
                if self.voters:
                    further = self.embed(batch.clips[:, learning:])
                    support = torch.cat([support, further], dim=1)
        return Contrast(
            anchors=anchors,
            candidates=candidates,
            rows=rows,
            columns=rows.gathered(gather),
            support=support,
            scored=scored,
        )


@METHODS.register("simclr", "SimCLR (Chen et al., 2020)")
class SimCLR(BatchContrast):
    """Pulls the clips of a video together, pushes all other videos away.

    Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", ICML 2020.
    On video: Qian et al. (CVRL), CVPR 2021; with more than two clips, Feichtenhofer et al., CVPR
    2021.
    """

    def pairs(self, anchors: Samples, candidates: Samples) -> Pairs:
        """Positives are the other clips of the video; the anchor itself is left out."""
        video = anchors.same(candidates, "videos")
        itself = video & anchors.same(candidates, "views")
        return Pairs(video & ~itself, itself)


@METHODS.register("supcon", "supervised contrastive learning (Khosla et al., 2020)")
class SupCon(BatchContrast):
    """Pulls the clips of a class together; videos without a label keep their own clips only.

    Khosla et al., "Supervised Contrastive Learning", NeurIPS 2020, equation 2 (sum outside the
    log), without the factor tau / 0.07 of the released code.
    """

    needs = ("labels",)

    def pairs(self, anchors: Samples, candidates: Samples) -> Pairs:
        """Positives are the clips of the class and of the video; the anchor itself is left out."""
        video = anchors.same(candidates, "videos")
        itself = video & anchors.same(candidates, "views")
        return Pairs((video | anchors.same(candidates, "labels")) & ~itself, itself)
