"""Supervised learning with cross-entropy: the reference that contrastive methods are held to."""

import math
from typing import Any

import torch.nn.functional as F
from torch import nn

from vidcsl.methods.losses import at_least_float32
from vidcsl.methods.method import METHODS, ClipBatch, Method
from vidcsl.methods.metrics import Metric


@METHODS.register("supervised", "cross-entropy on labels")
class Supervised(Method):
    """Classifies every view; the views of a video share its label.

    Args:
        encoder: clips -> features.
        feature_dim: length of a feature vector.
        classes: number of classes.
        label_smoothing: as in `torch.nn.functional.cross_entropy`.
        options: see `Method`.
    """

    kept = ("encoder", "head")
    needs = ("labels",)
    least_views = 1

    def __init__(
        self,
        encoder: nn.Module,
        *,
        feature_dim: int,
        classes: int,
        label_smoothing: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(encoder, **options)
        self.classes = classes
        self.head = nn.Linear(feature_dim, classes)
        self.label_smoothing = label_smoothing

    def loss_of_chance(self, *, videos: int, clips: int) -> float | None:  # noqa: ARG002
        """Of a head that gives all classes the same probability."""
        return math.log(self.classes)

    def forward(self, batch: ClipBatch) -> dict[str, Metric]:
        """Mean cross-entropy and accuracy over all views of the batch, geometry of the features."""
        features = self.encoder(batch.clips.flatten(0, 1))
        units = F.normalize(at_least_float32(features), dim=1)
        described = self.describe(units.unflatten(0, batch.clips.shape[:2]), batch)
        # The head runs in the autocast's type, the softmax does not: its sums lose small classes.
        logits = at_least_float32(self.head(features))
        labels = batch.labels.repeat_interleave(batch.clips.shape[1])
        loss = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        accuracy = (logits.argmax(dim=1) == labels).float().mean()
        return {"loss": loss, "train_accuracy": accuracy, **described}
