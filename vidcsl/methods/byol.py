"""BYOL: each clip predicts what a momentum encoder makes of the video's other clips."""

from typing import Any

import torch
from torch import Tensor, nn

from vidcsl.methods.method import METHODS, ClipBatch, Method, MomentumEncoder, embed
from vidcsl.methods.metrics import Metric
from vidcsl.models.encoder import Norms


@METHODS.register("byol", "BYOL (Grill et al., 2020)")
class BYOL(Method):
    """Pulls predictions to the momentum encoder's embeddings.

    Grill et al., "Bootstrap Your Own Latent", NeurIPS 2020; with more than two clips a video,
    Feichtenhofer et al., CVPR 2021. It has no negatives, so none can be false.

    Args:
        encoder: clips -> features.
        projector: features -> embeddings.
        predictor: embeddings -> predictions.
        momentum_encoder: makes the targets.
        options: see `Method`.
    """

    parts = ("projector", "predictor", "momentum_encoder")
    head_norms = Norms(last=False)

    def __init__(
        self,
        encoder: nn.Module,
        projector: nn.Module,
        *,
        predictor: nn.Module,
        momentum_encoder: MomentumEncoder,
        **options: Any,
    ) -> None:
        super().__init__(encoder, **options)
        self.projector, self.predictor = projector, predictor
        # Its weights are in checkpoints under the name "teacher".
        self.teacher = momentum_encoder

    def forward(self, batch: ClipBatch) -> dict[str, Metric]:
        """Mean of 2 - 2 cos over all ordered pairs of a video's clips."""
        predict = nn.Sequential(self.encoder, self.projector, self.predictor)
        predictions = embed(predict, batch.clips)  # [B, V, P]
        targets = embed(self.teacher, batch.clips)
        described = self.describe(predictions, batch)
        with torch.autocast(predictions.device.type, enabled=False):
            loss = prediction_loss(predictions, targets)
        return {"loss": loss, **described}

    def after_step(self, progress: float) -> None:
        """Let the momentum encoder follow."""
        self.teacher.follow(self.encoder, self.projector, progress=progress)

    def encoder_replaced(self) -> None:
        """The momentum encoder starts from the new weights too."""
        self.teacher.restart(self.encoder, self.projector)


def prediction_loss(predictions: Tensor, targets: Tensor) -> Tensor:
    """Mean squared distance of each view's prediction to the targets of the other views.

    Args:
        predictions, targets: unit `[B, V, P]`.
    """
    views = predictions.shape[1]
    cosines = predictions @ targets.transpose(1, 2)  # [B, V, V]
    # A view does not predict its own target: two networks can agree on the pixels of one clip.
    itself = torch.eye(views, dtype=torch.bool, device=cosines.device)
    others = cosines.masked_fill(itself, 0.0).sum() / (len(cosines) * views * (views - 1))
    return 2 - 2 * others
