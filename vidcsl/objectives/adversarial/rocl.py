"""RoCL: the clip that is hardest to tell as the other view of its video is one more positive.

Kim et al., "Adversarial Self-Supervised Contrastive Learning", NeurIPS 2020. On video, and with
false negatives removed, it is ours.
"""

import torch

from vidcsl.objectives.adversarial.contrast import AdversarialContrast
from vidcsl.objectives.adversarial.inner import in_eval
from vidcsl.objectives.method import ClipBatch
from vidcsl.objectives.metrics import Metric

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
