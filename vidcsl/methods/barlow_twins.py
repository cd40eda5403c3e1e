"""Barlow Twins: the cross-correlation of two views' embeddings becomes the identity."""

from itertools import combinations
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidcsl.methods.method import METHODS, ClipBatch, Method, embed
from vidcsl.methods.metrics import Metric
from vidcsl.models.encoder import Norms
from vidcsl.registry import Option

SLACK = 1e-5  # added to a variance, as a BatchNorm does


@METHODS.register(
    "barlow_twins",
    "Barlow Twins (Zbontar et al., 2021)",
    REDUNDANCY=Option(
        0.0051, "barlow_twins: weight of the correlations of two dimensions (lambda)", minimum=0
    ),
)
class BarlowTwins(Method):
    """Each dimension agrees between the clips of a video and does not correlate with any other.

    Zbontar et al., "Barlow Twins: Self-Supervised Learning via Redundancy Reduction", ICML 2021.
    It compares dimensions, not videos: it has no negatives, so none can be false.

    Args:
        encoder: clips -> features.
        projector: features -> embeddings, which are not normalised.
        dim: length of an embedding.
        redundancy: lambda.
        options: see `Method`.
    """

    parts = ("projector",)
    head_norms = Norms(last=False)

    def __init__(
        self,
        encoder: nn.Module,
        projector: nn.Module,
        *,
        dim: int,
        redundancy: float = 0.0051,
        **options: Any,
    ) -> None:
        super().__init__(encoder, **options)
        self.projector, self.dim, self.redundancy = projector, dim, redundancy

    def loss_of_chance(self, *, videos: int, clips: int) -> float:  # noqa: ARG002
        """Where all embeddings are the same: no dimension correlates with anything."""
        return float(self.dim)

    def forward(self, batch: ClipBatch) -> dict[str, Metric]:
        """The mean over all pairs of views, of the batch of all processes."""
        self.require_videos(batch, missing="correlations")
        embeddings = embed(nn.Sequential(self.encoder, self.projector), batch.clips, unit=False)
        described = self.describe(F.normalize(embeddings, dim=2), batch)
        with torch.autocast(embeddings.device.type, enabled=False):
            # Each process computes the whole loss: the gradients that they send back for a row add
            # up to as many times its gradient as DDP divides by.
            everyones = self.distributed.gather(embeddings)
            loss = barlow_twins_loss(everyones, redundancy=self.redundancy)
        return {"loss": loss, **described}


def barlow_twins_loss(embeddings: Tensor, *, redundancy: float) -> Tensor:
    """Squared distance of the cross-correlation matrix from the identity, over all pairs of views.

        L = sum_d (1 - C_dd)^2 + redundancy sum_{d != e} C_de^2

    C is `[P, P]`: dimension d of one view against dimension e of another over the batch.

    Args:
        embeddings: `[B, V, P]`, B >= 2.
        redundancy: lambda.
    """
    variances, means = torch.var_mean(embeddings, dim=0, correction=0)
    standard = (embeddings - means) / (variances + SLACK).sqrt()
    itself = torch.eye(embeddings.shape[2], device=embeddings.device, dtype=embeddings.dtype)
    weights = itself + redundancy * (1 - itself)
    losses = [
        (weights * (one.T @ other / len(one) - itself).square()).sum()
        for one, other in combinations(standard.unbind(dim=1), 2)
    ]
    return torch.stack(losses).mean()
