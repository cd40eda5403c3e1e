"""Supervised contrastive learning: clips of the same class are the positives.

Khosla et al., "Supervised Contrastive Learning", NeurIPS 2020, equation 2 (sum outside the log),
without the factor tau / 0.07 of the released code.
"""

from vidcsl.objectives.contrastive import BatchContrast
from vidcsl.objectives.false_negatives import Samples
from vidcsl.objectives.losses import Pairs


class SupCon(BatchContrast):
    """Pulls the clips of a class together; videos without a label keep their own clips only."""

    def pairs(self, anchors: Samples, candidates: Samples) -> Pairs:
        """Positives are the clips of the class and of the video; the anchor itself is left out."""
        video = anchors.same(candidates, "videos")
        itself = video & anchors.same(candidates, "views")
        return Pairs((video | anchors.same(candidates, "labels")) & ~itself, itself)
