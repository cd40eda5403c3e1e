"""Supervised learning with cross-entropy: the reference that contrastive methods are held to."""

import torch.nn.functional as F
from torch import Tensor, nn

from vidcsl.objectives.losses import at_least_float32
from vidcsl.objectives.method import ClipBatch, Method


class Supervised(Method):
    """Classifies every view; the views of a video share its label.

    Args:
        encoder: clips -> features.
        feature_dim: length of a feature vector.
        classes: number of classes.
        label_smoothing: as in `torch.nn.functional.cross_entropy`.
    """

    def __init__(
        self, encoder: nn.Module, *, feature_dim: int, classes: int, label_smoothing: float = 0.0
    ) -> None:
        super().__init__(encoder)
        self.head = nn.Linear(feature_dim, classes)
        self.label_smoothing = label_smoothing

    def forward(self, batch: ClipBatch) -> dict[str, Tensor]:
        """Mean cross-entropy and accuracy over all views of the batch."""
        logits = at_least_float32(self.head(self.encoder(batch.clips.flatten(0, 1))))
        labels = batch.labels.repeat_interleave(batch.clips.shape[1])
        loss = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        return {"loss": loss, "train_accuracy": (logits.argmax(dim=1) == labels).float().mean()}
