"""SimCLR on clips: the other clips of a video are the positives.

Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", ICML 2020.
On video: Qian et al. (CVRL), CVPR 2021; with more than two clips, Feichtenhofer et al., CVPR 2021.
"""

from vidcsl.objectives.contrastive import BatchContrast
from vidcsl.objectives.false_negatives import Samples
from vidcsl.objectives.losses import Pairs


class SimCLR(BatchContrast):
    """Pulls the clips of a video together, pushes all other videos away."""

    def pairs(self, anchors: Samples, candidates: Samples) -> Pairs:
        """Positives are the other clips of the video; the anchor itself is left out."""
        video = anchors.same(candidates, "videos")
        itself = video & anchors.same(candidates, "views")
        return Pairs(video & ~itself, itself)
