"""ACL, dual stream: clean views through one set of BatchNorms, perturbed ones through another.

Jiang et al., "Robust Pre-Training by Adversarial Contrastive Learning", NeurIPS 2020. On video, and
with false negatives removed, it is ours.
"""

from vidcsl.models.dual_norm import ADVERSARIAL, CLEAN, norms_in_use
from vidcsl.objectives.adversarial.contrast import AdversarialContrast
from vidcsl.objectives.method import ClipBatch
from vidcsl.objectives.metrics import Metric


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
