"""MoCo v2: clips are compared with a queue of keys, many more than a batch holds.

He et al., "Momentum Contrast for Unsupervised Visual Representation Learning", CVPR 2020, with the
projector of Chen et al., "Improved Baselines with Momentum Contrastive Learning", 2020. Every clip
is query and key, of any number of clips a video, and all keys are queued: Feichtenhofer et al.,
CVPR 2021, equation 1. BatchNorm over all processes makes the shuffling of batches needless.
"""

from typing import Any

import torch
from torch import Tensor, nn

from vidcsl.objectives.false_negatives import Samples
from vidcsl.objectives.keys import KeyContrast
from vidcsl.objectives.losses import Pairs
from vidcsl.objectives.method import ClipBatch
from vidcsl.objectives.metrics import Metric
from vidcsl.objectives.queue import OLD, KeyQueue


class MoCoV2(KeyContrast):
    """Finds the keys of a video's other clips among the keys of earlier videos.

    Old keys of the anchor's own video, which the queue of a small data set holds, are left out.

    Args:
        encoder, projector, teacher: see `KeyContrast`.
        queue: of keys as long as the projector's outputs.
        options: see `ContrastiveMethod`.
    """

    def __init__(
        self, encoder: nn.Module, projector: nn.Module, *, queue: KeyQueue, **options: Any
    ) -> None:
        super().__init__(encoder, projector, predictor=nn.Identity(), **options)
        self.queue = queue
        self._fresh: tuple[Tensor, Samples]

    def keys(self, own: Tensor, rows: Samples) -> tuple[Tensor, Samples]:
        """This process's keys, then the queue."""
        self._fresh = own, rows
        queued = self.queue.keys.to(own.dtype)
        return torch.cat([own, queued]), rows.joined(self.queue.samples())

    def pairs(self, anchors: Samples, candidates: Samples) -> Pairs:
        """Positives are the keys of the video's other clips, negatives the queue's other videos."""
        video, fresh = anchors.same(candidates, "videos"), candidates.views != OLD
        positives = video & fresh & ~anchors.same(candidates, "views")
        return Pairs(positives, (video | fresh) & ~positives)

    def forward(self, batch: ClipBatch) -> dict[str, Metric]:
        """The loss; then the keys of all processes go into the queue."""
        outputs = super().forward(batch)
        keys, rows = self._fresh
        self.queue.push(self.world.gather(keys), rows.gathered(self.world.gather))
        return outputs
