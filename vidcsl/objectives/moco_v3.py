"""MoCo v3: clips are compared with what a momentum encoder makes of the batch's other clips.

Chen et al., "An Empirical Study of Training Self-Supervised Vision Transformers", ICCV 2021. With
more than two clips a video: Feichtenhofer et al., CVPR 2021, equation 1. The paper's factor of
twice the temperature on the loss is left out.
"""

from torch import Tensor

from vidcsl.objectives.contrastive import Contrast
from vidcsl.objectives.false_negatives import Samples
from vidcsl.objectives.keys import KeyContrast
from vidcsl.objectives.losses import Pairs
from vidcsl.objectives.method import ClipBatch


class MoCoV3(KeyContrast):
    """Predicts the keys of a video's other clips, among the keys of all videos of the batch."""

    def contrast(self, batch: ClipBatch) -> Contrast:
        """Queries against the keys of all processes."""
        self.require_videos(batch)
        return super().contrast(batch)

    def keys(self, own: Tensor, rows: Samples) -> tuple[Tensor, Samples]:
        """The keys of all processes."""
        return self.world.gather(own), rows.gathered(self.world.gather)

    def pairs(self, anchors: Samples, candidates: Samples) -> Pairs:
        """Positives are the video's other clips; keys of the same view number are left out."""
        same_view = anchors.same(candidates, "views")
        return Pairs(anchors.same(candidates, "videos") & ~same_view, same_view)
