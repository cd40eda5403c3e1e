"""What adversarial contrastive methods share: terms over clean and perturbed views, one mask."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidcsl.objectives.adversarial.inner import Attacking, attack_seeds
from vidcsl.objectives.contrastive import Contrast
from vidcsl.objectives.false_negatives import Observation
from vidcsl.objectives.losses import Pairs, at_least_float32
from vidcsl.objectives.method import ClipBatch
from vidcsl.objectives.metrics import Metric
from vidcsl.objectives.simclr import SimCLR


@dataclass(frozen=True)
class Found:
    """The false negatives between the clean views of a step.

    Args:
        flagged: bool `[B * V, M * V]`, this process's B videos against all M.
        views: V.
        metrics: how well the detector did.
    """

    flagged: Tensor
    views: int
    metrics: dict[str, Metric]

    def between(self, sources: Sequence[int]) -> Tensor:
        """Bool `[B * V', M * V']`, for V' views that were made of the clean ones `sources`."""
        by_view = self.flagged.unflatten(0, (-1, self.views)).unflatten(2, (-1, self.views))
        chosen = by_view[:, list(sources)][..., list(sources)]
        return chosen.flatten(2, 3).flatten(0, 1)


class AdversarialContrast(Attacking, SimCLR):
    """SimCLR with perturbed views.

    What is a false negative is decided once a step, between clean views; every contrastive term,
    those that the attack maximises among them, looks it up there. The pairs of a step are held
    whole: the attack bounds the batch long before they do.

    Args:
        encoder, projector, options: see `ContrastiveMethod`.
        attack, seed: see `Attacking`.
    """

    def find(self, contrast: Contrast, batch: ClipBatch) -> Found:
        """Detect false negatives in a contrast of clean views, and let the detector learn."""
        anchors, candidates = contrast.anchors.detach(), contrast.candidates.detach()
        with torch.autocast(anchors.device.type, enabled=False):
            detection = self.detection(contrast, batch)
            _, flagged = detection(anchors @ candidates.T, slice(0, len(anchors)))
            self.detector.learn(Observation(batch.videos, contrast.support, batch.progress))
        return Found(flagged, batch.clips.shape[1] - self.voters, detection.metrics())

    def treated(self, batch: ClipBatch, found: Found, sources: Sequence[int]) -> Pairs:
        """The pairs of a term over views that were made of the clean ones `sources`."""
        rows = batch.samples(len(sources))
        untreated = self.pairs(rows, rows.gathered(self.world.gather))
        return self.treatment(untreated, found.between(sources) & untreated.negatives())

    def row_losses(self, embeddings: Tensor, pairs: Pairs) -> tuple[Tensor, Tensor]:
        """The loss of each of the embeddings `[B, V, P]`, and where it is defined, `[B, V]`."""
        with torch.autocast(embeddings.device.type, enabled=False):
            anchors = at_least_float32(embeddings.flatten(0, 1))
            losses, defined = self.loss(anchors @ self.world.gather(anchors).T, pairs)
        shape = embeddings.shape[:2]
        return losses.unflatten(0, shape), defined.unflatten(0, shape)

    def term(self, embeddings: Tensor, pairs: Pairs) -> Tensor:
        """The mean loss of the embeddings `[B, V, P]` over all processes."""
        losses, defined = self.row_losses(embeddings, pairs)
        return self.averaged(losses.sum(), defined)

    def perturbed(
        self, clips: Tensor, loss: Callable[[Tensor], Tensor], batch: ClipBatch
    ) -> Tensor:
        """Clips `[B, V, 3, T, S, S]`, perturbed so that a loss rises.

        Args:
            clips: clean.
            loss: unit embeddings `[B, V, P]` of the perturbed clips to one number a video, `[B]`.
            batch: whose clips they are.
        """
        views = clips.shape[1]

        def of_clips(outputs: Tensor) -> Tensor:
            units = F.normalize(at_least_float32(outputs), dim=1).unflatten(0, (-1, views))
            return loss(units).repeat_interleave(views) / views

        attacked = self.attack(
            nn.Sequential(self.encoder, self.projector),
            clips.flatten(0, 1),
            of_clips,
            seeds=attack_seeds(batch, views=views, seed=self.seed),
            progress=batch.progress,
        )
        return attacked.unflatten(0, clips.shape[:2])
