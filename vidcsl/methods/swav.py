"""SwAV: clips of a video predict each other's assignment to prototypes.

Caron et al., "Unsupervised Learning of Visual Features by Contrasting Cluster Assignments",
NeurIPS 2020; with more than two clips a video, Feichtenhofer et al., CVPR 2021. There are no
negatives, so none that could be false.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidcsl.distributed import DistributedContext
from vidcsl.methods.method import ClipBatch, Method, Metric, embed


class SwAV(Method):
    """Each clip's softmax over prototypes learns the codes of the video's other clips.

    Args:
        encoder: clips -> features.
        projector: features -> embeddings, before normalisation.
        dim: length of an embedding.
        prototypes: how many; 3,000 in the paper, for ImageNet.
        temperature: of the softmax.
        sharpness: epsilon of the codes: the smaller, the surer they are.
        iterations: of Sinkhorn's algorithm.
        frozen: share of the training, its first epoch, in which the prototypes stay as they are.
        options: see `Method`.
    """

    def __init__(
        self,
        encoder: nn.Module,
        projector: nn.Module,
        *,
        dim: int,
        prototypes: int,
        temperature: float = 0.1,
        sharpness: float = 0.05,
        iterations: int = 3,
        frozen: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(encoder, **options)
        self.projector = projector
        self.prototypes = nn.Parameter(F.normalize(torch.randn(prototypes, dim), dim=1))
        self.temperature, self.sharpness = temperature, sharpness
        self.iterations, self.frozen = iterations, frozen

    def forward(self, batch: ClipBatch) -> dict[str, Metric]:
        """Cross-entropy of each view's codes and every other view's prediction."""
        embeddings = embed(nn.Sequential(self.encoder, self.projector), batch.clips)  # [B, V, P]
        described = self.describe(embeddings, batch)
        # A frozen weight still takes part, with a gradient of 0: every process expects one.
        learning = float(batch.progress >= self.frozen)
        prototypes = self.prototypes * learning + self.prototypes.detach() * (1 - learning)
        with torch.autocast(embeddings.device.type, enabled=False):
            scores = embeddings @ prototypes.to(embeddings.dtype).T  # [B, V, K]
            by_view = scores.detach().unbind(dim=1)
            codes = torch.stack([self._codes(view) for view in by_view], dim=1)
            loss = swapped_loss(scores / self.temperature, codes)
        return {"loss": loss, **described}

    def _codes(self, scores: Tensor) -> Tensor:
        return sinkhorn(
            scores / self.sharpness, iterations=self.iterations, distributed=self.distributed
        )

    @torch.no_grad()
    def after_step(self, progress: float) -> None:  # noqa: ARG002
        """Bring the prototypes back to unit length."""
        self.prototypes.copy_(F.normalize(self.prototypes, dim=1))


def swapped_loss(logits: Tensor, codes: Tensor) -> Tensor:
    """Mean cross-entropy of the codes of one view and the prediction of another.

    Args:
        logits, codes: `[B, V, K]`; codes sum to 1 over K.
    """
    views = logits.shape[1]
    predicted = logits.log_softmax(dim=2)
    agreements = codes @ predicted.transpose(1, 2)  # [B, V, V]
    itself = torch.eye(views, dtype=torch.bool, device=logits.device)
    total = agreements.masked_fill(itself, 0.0).sum()
    return -total / (len(logits) * views * (views - 1))


@torch.no_grad()
def sinkhorn(logits: Tensor, *, iterations: int, distributed: DistributedContext) -> Tensor:
    """Assignments that use all prototypes equally over the batch of all processes.

    In logarithms: at a sharpness of 0.05 the exponentials of half precision overflow.

    Args:
        logits: `[B, K]`, the rows of this process.
        iterations: each evens out the prototypes, then the rows.

    Returns:
        Codes `[B, K]`, non-negative; each row sums to 1.
    """
    codes = logits
    for _ in range(iterations):
        mine = codes.logsumexp(dim=0, keepdim=True)  # [1, K]
        codes = codes - distributed.gather(mine).logsumexp(dim=0, keepdim=True)
        codes = codes - codes.logsumexp(dim=1, keepdim=True)
    return codes.exp()
