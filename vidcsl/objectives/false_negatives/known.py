"""Detectors that know: nothing, the source video, or the label."""

import torch
from torch import Tensor

from vidcsl.objectives.false_negatives.detector import Detector
from vidcsl.objectives.false_negatives.samples import Samples


class NoDetector(Detector):
    """Flags nothing: plain contrastive learning."""

    def forward(
        self,
        scores: Tensor,
        negatives: Tensor,
        anchors: Samples,
        candidates: Samples,
        progress: float,
    ) -> Tensor:
        """All False."""
        return torch.zeros_like(negatives)


class LabelOracle(Detector):
    """Flags other videos of the anchor's class: the upper bound of any detector."""

    def forward(
        self,
        scores: Tensor,
        negatives: Tensor,
        anchors: Samples,
        candidates: Samples,
        progress: float,
    ) -> Tensor:
        """Bool `[b, M]`: another video with the same label."""
        return anchors.same(candidates, "labels") & negatives


class KnownGroups(Detector):
    """Flags clips cut from the anchor's source video, as CoCLR does (Han et al., 2020)."""

    def forward(
        self,
        scores: Tensor,
        negatives: Tensor,
        anchors: Samples,
        candidates: Samples,
        progress: float,
    ) -> Tensor:
        """Bool `[b, M]`: another video of the same group."""
        return anchors.same(candidates, "groups") & negatives
