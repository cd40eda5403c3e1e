"""Queries and keys: what the methods share that learn from a momentum encoder's view of others."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidcsl.objectives.contrastive import Contrast, ContrastiveMethod
from vidcsl.objectives.ema import MomentumEncoder
from vidcsl.objectives.false_negatives import Samples
from vidcsl.objectives.losses import at_least_float32
from vidcsl.objectives.method import ClipBatch


class KeyContrast(ContrastiveMethod):
    """Every clip is a query, compared with keys that the momentum encoder makes.

    Args:
        encoder, projector: as of every contrastive method.
        predictor: embeddings -> queries, before normalisation.
        teacher: the momentum encoder, which makes the keys.
        options: see `ContrastiveMethod`.
    """

    teacher: MomentumEncoder

    def __init__(
        self,
        encoder: nn.Module,
        projector: nn.Module,
        *,
        predictor: nn.Module,
        teacher: MomentumEncoder,
        **options: Any,
    ) -> None:
        super().__init__(encoder, projector, teacher=teacher, **options)
        self.predictor = predictor

    def keys(self, own: Tensor, rows: Samples) -> tuple[Tensor, Samples]:
        """The candidates `[M, P]` and their samples, of this process's keys `[B * V, P]`."""
        raise NotImplementedError

    def contrast(self, batch: ClipBatch) -> Contrast:
        """Queries against keys."""
        learning = batch.clips.shape[1] - self.voters
        clips = batch.clips[:, :learning]
        queries = self.predictor(self.projector(self.encoder(clips.flatten(0, 1))))
        queries = F.normalize(at_least_float32(queries), dim=1)
        taught = self.taught(batch.clips)  # [B, V + voters, P]
        rows = batch.samples(learning)
        keys, columns = self.keys(taught[:, :learning].flatten(0, 1), rows)
        voices = taught
        if self.judge == "online":
            asked = queries.detach().unflatten(0, clips.shape[:2])
            voices = torch.cat([asked, taught[:, learning:]], dim=1)
        return Contrast(
            anchors=queries,
            candidates=keys,
            rows=rows,
            columns=columns,
            support=voices,
            voted_on=keys,
        )
