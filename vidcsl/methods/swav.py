"""SwAV: clips of a video predict each other's assignment to prototypes."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidcsl.distributed import DistributedContext
from vidcsl.methods.method import METHODS, ClipBatch, Method, embed
from vidcsl.methods.metrics import Metric
from vidcsl.models.encoder import Norms
from vidcsl.registry import Option


@METHODS.register(
    "swav",
    "SwAV (Caron et al., 2020)",
    PROTOTYPES=Option(300, "swav: number of prototypes", minimum=2),
    CODE_SHARPNESS=Option(
        0.05, "swav: epsilon of the codes; smaller values make them sharper", minimum=1e-3
    ),
    FROZEN_EPOCHS=Option(
        1.0, "swav: first epochs, in which the prototypes do not learn", minimum=0
    ),
)
class SwAV(Method):
    """Each clip's softmax over prototypes learns the codes of the video's other clips.

    Caron et al., "Unsupervised Learning of Visual Features by Contrasting Cluster Assignments",
    NeurIPS 2020; with more than two clips a video, Feichtenhofer et al., CVPR 2021. It has no
    negatives, so none can be false.

    Different from the authors' code: no small crops beside the large ones (multi-crop), and no
    queue of earlier embeddings, with which they fill the codes of small batches; a batch that is
    small against the prototypes uses them less evenly.

    Args:
        encoder: clips -> features.
        projector: features -> embeddings, before normalisation.
        dim: length of an embedding.
        prototypes: how many; 3,000 in the paper, for ImageNet.
        temperature: of the softmax.
        code_sharpness: epsilon of the codes.
        iterations: of Sinkhorn's algorithm.
        frozen_epochs: in which the prototypes stay as they are.
        epochs: of the training run.
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
        prototypes: int,
        temperature: float = 0.1,
        code_sharpness: float = 0.05,
        iterations: int = 3,
        frozen_epochs: float = 0.0,
        epochs: int = 1,
        **options: Any,
    ) -> None:
        super().__init__(encoder, **options)
        self.projector = projector
        self.prototypes = nn.Parameter(F.normalize(torch.randn(prototypes, dim), dim=1))
        self.temperature, self.code_sharpness = temperature, code_sharpness
        self.iterations, self.frozen = iterations, frozen_epochs / epochs

    def forward(self, batch: ClipBatch) -> dict[str, Metric]:
        """Cross-entropy of each view's codes and every other view's prediction."""
        embeddings = embed(nn.Sequential(self.encoder, self.projector), batch.clips)  # [B, V, P]
        described = self.describe(embeddings, batch)
        # A frozen weight still takes part, with a gradient of 0: DDP waits for one.
        learning = float(batch.progress >= self.frozen)
        prototypes = self.prototypes * learning + self.prototypes.detach() * (1 - learning)
        with torch.autocast(embeddings.device.type, enabled=False):
            scores = embeddings @ prototypes.to(embeddings.dtype).T  # [B, V, K]
            # View by view: the codes of one view use all prototypes equally.
            codes = [
                sinkhorn(
                    view / self.code_sharpness,
                    iterations=self.iterations,
                    distributed=self.distributed,
                )
                for view in scores.detach().unbind(dim=1)
            ]
            loss = swapped_loss(scores / self.temperature, torch.stack(codes, dim=1))
        return {"loss": loss, **described}

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

    Args:
        logits: `[B, K]`, the rows of this process.
        iterations: each evens out the prototypes, then the rows.
        distributed: the processes that train together.

    Returns:
        Codes `[B, K]`, non-negative; each row sums to 1.
    """
    codes = logits  # in logarithms: at an epsilon of 0.05 the exponentials of float16 overflow
    for _ in range(iterations):
        mine = codes.logsumexp(dim=0, keepdim=True)  # [1, K]
        codes = codes - distributed.gather(mine).logsumexp(dim=0, keepdim=True)
        codes = codes - codes.logsumexp(dim=1, keepdim=True)
    return codes.exp()
