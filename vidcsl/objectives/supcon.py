"""Supervised contrastive learning: clips of the same class are the positives.

Khosla et al., "Supervised Contrastive Learning", NeurIPS 2020, equation 2 (sum outside the log),
without the factor tau / 0.07 of the released code.
"""

from torch import Tensor

from vidcsl.objectives.false_negatives import Samples
from vidcsl.objectives.method import ContrastiveMethod


class SupCon(ContrastiveMethod):
    """Pulls the clips of a class together; videos without a label keep their own clips only."""

    def positives(self, anchors: Samples, candidates: Samples) -> Tensor:
        """Clips of the same class or of the same video."""
        return anchors.same(candidates, "labels") | anchors.same(candidates, "videos")
