"""AdvCL: contrast over clean, high-frequency and perturbed views, and heads for pseudo-labels.

Fan et al., "When Does Contrastive Learning Preserve Adversarial Robustness from Pretraining to
Finetuning?", NeurIPS 2021. On video, and with false negatives removed, it is ours; so are the
pseudo-labels, see `PseudoLabels`.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidcsl.models.dual_norm import ADVERSARIAL, CLEAN, norms_in_use
from vidcsl.objectives.adversarial.contrast import AdversarialContrast
from vidcsl.objectives.adversarial.frequencies import high_frequencies
from vidcsl.objectives.adversarial.inner import attack_seeds
from vidcsl.objectives.adversarial.pseudo_labels import PseudoLabels
from vidcsl.objectives.false_negatives import Observation
from vidcsl.objectives.losses import at_least_float32
from vidcsl.objectives.method import ClipBatch
from vidcsl.objectives.metrics import Metric

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
