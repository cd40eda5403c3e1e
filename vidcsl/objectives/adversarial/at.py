"""Adversarial training: cross-entropy on perturbed clips.

Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks", ICLR 2018. Fast AT
(Wong et al., ICLR 2020) is the same with one step of 1.25 eps; Free AT (Shafahi et al., NeurIPS
2019) is the same with a perturbation that climbs from replay to replay.
"""

import torch.nn.functional as F
from torch import Tensor

from vidcsl.objectives.adversarial.classifier import AdversarialClassifier
from vidcsl.objectives.losses import at_least_float32
from vidcsl.objectives.method import ClipBatch
from vidcsl.objectives.metrics import Metric


class AdversarialTraining(AdversarialClassifier):
    """Minimises the cross-entropy that the attack maximises."""

    def forward(self, batch: ClipBatch) -> dict[str, Metric]:
        """Mean cross-entropy and accuracy over all views under attack."""
        clips = batch.clips.flatten(0, 1)
        labels = batch.labels.repeat_interleave(batch.clips.shape[1])
        features = self.encoder(self.perturbed(clips, batch, labels))
        logits = at_least_float32(self.head(features))
        loss = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        return {"loss": loss, **self.report(batch, features, logits)}

    def harm(self, logits: Tensor, *references: Tensor) -> Tensor:
        """Cross-entropy."""
        return F.cross_entropy(logits, references[0], reduction="none")
