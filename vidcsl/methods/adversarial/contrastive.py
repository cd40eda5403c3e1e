"""RoCL, ACL and DynACL."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidcsl.methods.adversarial.inner import Attacking, attack_seeds, in_eval
from vidcsl.methods.contrastive import Contrast, SimCLR
from vidcsl.methods.false_negatives import Observation
from vidcsl.methods.losses import Pairs, at_least_float32
from vidcsl.methods.method import ClipBatch, Metric
from vidcsl.models.norm_sets import ADVERSARIAL, CLEAN, norms_in_use

# ----------------------------------------------------------------------
# What adversarial contrastive methods share: terms over clean and perturbed views, one mask.


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
        untreated = self.pairs(rows, rows.gathered(self.distributed.gather))
        return self.treatment(untreated, found.between(sources) & untreated.negatives())

    def row_losses(self, embeddings: Tensor, pairs: Pairs) -> tuple[Tensor, Tensor]:
        """The loss of each of the embeddings `[B, V, P]`, and where it is defined, `[B, V]`."""
        with torch.autocast(embeddings.device.type, enabled=False):
            anchors = at_least_float32(embeddings.flatten(0, 1))
            losses, defined = self.loss(anchors @ self.distributed.gather(anchors).T, pairs)
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


# ----------------------------------------------------------------------
# RoCL: the clip that is hardest to tell as the other view of its video is one more positive.
#
# Kim et al., "Adversarial Self-Supervised Contrastive Learning", NeurIPS 2020. On video, and with
# false negatives removed, it is ours.

REGULARISER = 1 / 256  # weight of the perturbed view against the other view alone


class RoCL(AdversarialContrast):
    """NT-Xent over the clean views and a perturbed first one, which share their BatchNorms."""

    def forward(self, batch: ClipBatch) -> dict[str, Metric]:
        """The loss over all views, and a small one of the perturbed view and the others alone."""
        views = batch.clips.shape[1] - self.voters
        clips = batch.clips[:, :views]
        with torch.no_grad(), in_eval(self.encoder, self.projector):
            contrast = self.contrast(batch)
        clean = contrast.anchors.unflatten(0, (-1, views))
        described = self.describe(clean, batch)
        found = self.find(contrast, batch)
        pairs = self.treated(batch, found, range(views))
        adversarial = self.perturbed(
            clips[:, :1],
            lambda moved: self.row_losses(torch.cat([moved, clean[:, 1:]], dim=1), pairs)[0].sum(1),
            batch,
        )
        embeddings = self.embed(torch.cat([clips, adversarial], dim=1))
        everything = self.term(embeddings, self.treated(batch, found, (*range(views), 0)))
        regulariser = self.term(torch.cat([embeddings[:, -1:], embeddings[:, 1:-1]], dim=1), pairs)
        return {
            "loss": everything + REGULARISER * regulariser,
            "adversarial_loss": regulariser.detach(),
            **found.metrics,
            **described,
        }


# ----------------------------------------------------------------------
# ACL, dual stream: clean views through one set of BatchNorms, perturbed ones through another.
#
# Jiang et al., "Robust Pre-Training by Adversarial Contrastive Learning", NeurIPS 2020. On video,
# and with false negatives removed, it is ours.


class ACL(AdversarialContrast):
    """The mean of NT-Xent over the clean views and NT-Xent over all views perturbed together."""

    norm_sets = projector_sets = (CLEAN, ADVERSARIAL)

    def forward(self, batch: ClipBatch) -> dict[str, Metric]:
        """Both losses, weighed; what else is reported is of the clean views."""
        contrast = self.contrast(batch)
        views = batch.clips.shape[1] - self.voters
        clean = contrast.anchors.unflatten(0, (-1, views))
        described = self.describe(clean, batch)
        found = self.find(contrast, batch)
        pairs = self.treated(batch, found, range(views))
        with norms_in_use(self, ADVERSARIAL):
            clips = self.perturbed(
                batch.clips[:, :views], lambda moved: self.row_losses(moved, pairs)[0].sum(1), batch
            )
            adversarial = self.embed(clips)
        losses = self.term(clean, pairs), self.term(adversarial, pairs)
        weight = self.weight(batch.progress)
        return {
            "loss": ((2 - weight) * losses[0] + weight * losses[1]) / 2,
            "clean_loss": losses[0].detach(),
            "adversarial_loss": losses[1].detach(),
            **found.metrics,
            **described,
        }

    def weight(self, _progress: float) -> float:
        """Of the perturbed views, from 0 to 2."""
        return 1.0


# ----------------------------------------------------------------------
# DynACL: ACL whose augmentation weakens with training, while the perturbed views count more.
#
# Luo et al., "Rethinking the Effect of Data Augmentation in Adversarial Contrastive Learning", ICLR
# 2023. The augmentation's strengths are AUGMENT.STRENGTHS.

GAIN = 2 / 3  # by how much the weight grows over the whole training


class DynACL(ACL):
    """ACL with weights of 2 - w and w, where w rises from 1 in as many stages as strengths fall.

    Args:
        stages: equal parts of the training.
        options: see `AdversarialContrast`.
    """

    def __init__(self, *modules: Any, stages: int = 1, **options: Any) -> None:
        super().__init__(*modules, **options)
        self.stages = stages

    def weight(self, progress: float) -> float:
        """w = min(1 + 2/3 of the stages that are over, 2)."""
        over = int(progress * self.stages + 1e-9) / self.stages
        return min(1 + GAIN * over, 2.0)
