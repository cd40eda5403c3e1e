"""SimCLR on clips: the other clips of a video are the positives.

Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", ICML 2020.
On video: Qian et al. (CVRL), CVPR 2021; with more than two clips, Feichtenhofer et al., CVPR 2021.
"""

from torch import Tensor

from vidcsl.objectives.false_negatives import Samples
from vidcsl.objectives.method import ContrastiveMethod


class SimCLR(ContrastiveMethod):
    """Pulls the clips of a video together, pushes all other videos away."""

    def positives(self, anchors: Samples, candidates: Samples) -> Tensor:
        """Clips of the same video."""
        return anchors.same(candidates, "videos")
