"""AdvCL: an attacked view, a high-frequency view and a clean view, with pseudo-labels."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidcsl.methods.adversarial.contrastive import AdversarialContrast
from vidcsl.methods.adversarial.inner import attack_seeds
from vidcsl.methods.false_negatives import Observation
from vidcsl.methods.false_negatives.clusters import Clusters
from vidcsl.methods.losses import at_least_float32
from vidcsl.methods.method import ClipBatch, Metric
from vidcsl.models.norm_sets import ADVERSARIAL, CLEAN, norms_in_use

# ----------------------------------------------------------------------
# The high-frequency component of clips, which AdvCL takes as one more view.

RADIUS = 0.25  # of the disc of frequencies that is cut out, as a share of the frame's side


def high_frequencies(clips: Tensor) -> Tensor:
    """Each frame without its low spatial frequencies, clamped to [0, 1].

    Fan et al. (NeurIPS 2021) cut out a disc of radius 8 in the spectrum of 32 x 32 images; here the
    radius grows with the frames.

    Args:
        clips: `[..., S, S]` in [0, 1].
    """
    side = clips.shape[-1]
    with torch.autocast(clips.device.type, enabled=False):
        spectrum = torch.fft.fft2(clips.float())
        steps = torch.fft.fftfreq(side, 1 / side, device=clips.device)  # signed, 0 first
        low = steps[:, None].square() + steps.square() <= (RADIUS * side) ** 2
        passed = torch.fft.ifft2(spectrum.masked_fill(low, 0)).real
    return passed.clamp(0, 1).to(clips.dtype)


# ----------------------------------------------------------------------
# Pseudo-labels: each video's cluster, under a number that outlives the next clustering.


class PseudoLabels(Clusters):
    """Clusters of the training videos at several levels, as labels `[levels, videos]`.

    The embeddings of the training itself are clustered, once an epoch, into a hierarchy. AdvCL as
    published takes labels of an encoder that was pretrained on ImageNet instead, once and for all.
    As heads learn to name clusters, each new cluster gets the number of the old one that it shares
    most videos with, in the best assignment of all (Kuhn, 1955).
    """

    def _cluster(self, epoch: int) -> None:
        before = self.labels.clone()
        super()._cluster(epoch)
        for level, count in enumerate(self.clusters):
            renamed = matched(before[level], self.labels[level], count=count)
            self.labels[level] = renamed

    def of(self, videos: Tensor) -> Tensor:
        """`[levels, N]`; -1 where unknown so far."""
        return self.labels[:, videos]


def matched(before: Tensor, after: Tensor, *, count: int) -> Tensor:
    """The labels `after` `[n]`, renamed so that as many as possible stay as `before`; -1: unknown.

    Args:
        before, after: int64 `[n]`, below `count`.
        count: how many clusters there are.
    """
    from scipy.optimize import linear_sum_assignment  # slow to import

    both = (before >= 0) & (after >= 0)
    shared = np.zeros((count, count), dtype=np.int64)
    np.add.at(shared, (after[both].cpu().numpy(), before[both].cpu().numpy()), 1)
    new, old = linear_sum_assignment(shared, maximize=True)
    names: Sequence[int] = dict(zip(new.tolist(), old.tolist(), strict=True))  # type: ignore[assignment]
    table = after.new_tensor([names[number] for number in range(count)])
    return table[after.clamp(min=0)].where(after >= 0, -1)


# ----------------------------------------------------------------------
# AdvCL: contrast over clean, high-frequency and perturbed views, and heads for pseudo-labels.
#
# Fan et al., "When Does Contrastive Learning Preserve Adversarial Robustness from Pretraining to
# Finetuning?", NeurIPS 2021. On video, and with false negatives removed, it is ours; so are the
# pseudo-labels, see `PseudoLabels`.

PSEUDO = "pseudo"  # the BatchNorms of clips that were perturbed against their pseudo-labels
WEIGHT = 0.2  # of the cross-entropy


class AdvCL(AdversarialContrast):
    """NT-Xent over all clean views, the first one's high frequencies and the first one perturbed;
    and cross-entropy of pseudo-labels on the first one perturbed against these.

    Args:
        encoder, projector, options: see `AdversarialContrast`.
        feature_dim: length of a feature vector.
        pseudo_labels: of the training videos.
    """

    norm_sets = (CLEAN, ADVERSARIAL, PSEUDO)
    projector_sets = (CLEAN, ADVERSARIAL)

    def __init__(
        self,
        encoder: nn.Module,
        projector: nn.Module,
        *,
        feature_dim: int,
        pseudo_labels: PseudoLabels,
        **options: Any,
    ) -> None:
        super().__init__(encoder, projector, **options)
        self.pseudo_labels = pseudo_labels
        self.heads = nn.ModuleList(
            nn.Linear(feature_dim, count) for count in pseudo_labels.clusters
        )

    def forward(self, batch: ClipBatch) -> dict[str, Metric]:
        """Both losses; what else is reported is of the clean views."""
        self.require_videos(batch)
        views = batch.clips.shape[1] - self.voters
        clips = batch.clips[:, :views]
        shown = self.embed(torch.cat([clips, high_frequencies(clips[:, :1])], dim=1))
        contrast = self.contrast_of(shown[:, :views], batch)
        described = self.describe(shown[:, :views], batch)
        found = self.find(contrast, batch)
        pairs = self.treated(batch, found, (*range(views), 0, 0))
        with norms_in_use(self, ADVERSARIAL):
            fixed = shown.detach()
            perturbed = self.perturbed(
                clips[:, :1],
                lambda moved: self.row_losses(torch.cat([fixed, moved], dim=1), pairs)[0].sum(1),
                batch,
            )
            adversarial = self.embed(perturbed)
        contrastive = self.term(torch.cat([shown, adversarial], dim=1), pairs)
        naming = self._naming(clips[:, 0], batch)
        self.pseudo_labels.learn(Observation(batch.videos, contrast.support, batch.progress))
        return {
            "loss": contrastive + WEIGHT * naming,
            "contrastive_loss": contrastive.detach(),
            "pseudo_label_loss": naming.detach(),
            **found.metrics,
            **described,
        }

    def _naming(self, clips: Tensor, batch: ClipBatch) -> Tensor:
        """The mean cross-entropy of the pseudo-labels on clips perturbed against them."""
        labels = self.pseudo_labels.of(batch.videos)  # [levels, B]
        network = _Logits(self.encoder, self.heads)

        def of_clips(logits: Tensor) -> Tensor:
            parts = at_least_float32(logits).split(list(self.pseudo_labels.clusters), dim=1)
            each = [
                F.cross_entropy(part, known, ignore_index=-1, reduction="none")
                for part, known in zip(parts, labels, strict=True)
            ]
            return torch.stack(each).mean(dim=0)

        with norms_in_use(self.encoder, PSEUDO):
            if bool((labels >= 0).any()):
                seeds = attack_seeds(batch, views=1, seed=self.seed, purpose="pseudo-labels")
                clips = self.attack(network, clips, of_clips, seeds=seeds, progress=batch.progress)
            logits = network(clips)
        with torch.autocast(logits.device.type, enabled=False):
            known = (labels[0] >= 0).sum()
            return self.averaged(of_clips(logits).sum(), known)


class _Logits(nn.Module):
    """The logits of all heads side by side."""

    def __init__(self, encoder: nn.Module, heads: nn.ModuleList) -> None:
        super().__init__()
        self.encoder, self.heads = encoder, heads

    def forward(self, clips: Tensor) -> Tensor:
        features = self.encoder(clips)
        return torch.cat([head(features) for head in self.heads], dim=1)
