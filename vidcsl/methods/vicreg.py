"""VICReg: clips of a video agree, while every dimension varies and no two of them correlate."""

from itertools import combinations
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidcsl.methods.method import METHODS, ClipBatch, Method, embed
from vidcsl.methods.metrics import Metric
from vidcsl.models.encoder import Norms
from vidcsl.registry import Option

SLACK = 1e-4  # added to a variance: the slope of the square root is infinite at 0


@METHODS.register(
    "vicreg",
    "VICReg (Bardes et al., 2022)",
    INVARIANCE=Option(25.0, "vicreg: weight of the distance between clips of a video", minimum=0),
    VARIANCE=Option(
        25.0, "vicreg: weight of the term that keeps each dimension's deviation at 1", minimum=0
    ),
    COVARIANCE=Option(1.0, "vicreg: weight of the squared covariances", minimum=0),
)
class VICReg(Method):
    """Pulls the clips of a video together and keeps the embeddings of a batch spread out.

    Bardes, Ponce & LeCun, "VICReg: Variance-Invariance-Covariance Regularization for
    Self-Supervised Learning", ICLR 2022. It compares dimensions, not videos: it has no negatives,
    so none can be false.

    Args:
        encoder: clips -> features.
        projector: features -> embeddings, which are not normalised.
        invariance, variance, covariance: weights of the three terms.
        options: see `Method`.
    """

    parts = ("projector",)
    head_norms = Norms(last=False)

    def __init__(
        self,
        encoder: nn.Module,
        projector: nn.Module,
        *,
        invariance: float = 25.0,
        variance: float = 25.0,
        covariance: float = 1.0,
        **options: Any,
    ) -> None:
        super().__init__(encoder, **options)
        self.projector = projector
        self.invariance, self.variance, self.covariance = invariance, variance, covariance

    def loss_of_chance(self, *, videos: int, clips: int) -> float:  # noqa: ARG002
        """Where all embeddings are the same: nothing but the missing variance."""
        return self.variance * (1 - SLACK**0.5)

    def forward(self, batch: ClipBatch) -> dict[str, Metric]:
        """The weighted sum of the three terms over the batch of all processes."""
        self.require_videos(batch, missing="variance")
        embeddings = embed(nn.Sequential(self.encoder, self.projector), batch.clips, unit=False)
        described = self.describe(F.normalize(embeddings, dim=2), batch)
        with torch.autocast(embeddings.device.type, enabled=False):
            # Each process computes the whole loss: the gradients that they send back for a row add
            # up to as many times its gradient as DDP divides by.
            invariance, variance, covariance = vicreg_terms(self.distributed.gather(embeddings))
            loss = self.invariance * invariance + self.variance * variance
            loss = loss + self.covariance * covariance
        return {"loss": loss, **described}


def vicreg_terms(embeddings: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Invariance, variance and covariance of embeddings `[B, V, P]`, B >= 2.

    - invariance: mean squared difference of two clips of a video, over all pairs of views;
    - variance: mean over views and dimensions of max(0, 1 - standard deviation over the batch);
    - covariance: the squares of all covariances of two dimensions, summed, over P, for each of two
      views (the paper's equation 4, and the sum of equation 6).
    """
    pairs = list(combinations(embeddings.unbind(dim=1), 2))
    invariance = torch.stack([F.mse_loss(one, other) for one, other in pairs]).mean()
    centred = (embeddings - embeddings.mean(dim=0)).transpose(0, 1)  # [V, B, P]
    deviations = (embeddings.var(dim=0) + SLACK).sqrt()
    covariances = centred.transpose(1, 2) @ centred / (len(embeddings) - 1)  # [V, P, P]
    itself = torch.eye(embeddings.shape[2], dtype=torch.bool, device=embeddings.device)
    squares = covariances.masked_fill(itself, 0.0).square().sum(dim=(1, 2)) / embeddings.shape[2]
    return invariance, F.relu(1 - deviations).mean(), 2 * squares.mean()
