"""Detectors that know: nothing, the source video, or the label."""

import torch
from torch import Tensor

from vidcsl.methods.false_negatives.detector import Detector, Samples
from vidcsl.methods.losses import count


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
    """Flags other videos of the anchor's class; by default all of them, the upper bound.

    A worse oracle shows which recall and precision a detector needs, with all else alike. Pairs of
    videos are drawn by a hash of both and the seed, so that a pair is found, or wrongly added, in
    every step in which it meets, whichever of the two is the anchor.

    Args:
        recall: share of the false negatives that are found.
        precision: of what is flagged, share that is right; true negatives are added to the found
            until it holds in expectation, or until none is left. Where recall is 0, nothing is.
        seed: of the draw of pairs.
    """

    def __init__(self, *, recall: float = 1.0, precision: float = 1.0, seed: int = 0) -> None:
        super().__init__()
        self.recall, self.precision, self.seed = recall, precision, seed

    def forward(
        self,
        scores: Tensor,
        negatives: Tensor,
        anchors: Samples,
        candidates: Samples,
        progress: float,
    ) -> Tensor:
        """Bool `[b, M]`: some of the other videos with the same label, some with another."""
        same = anchors.same(candidates, "labels") & negatives
        if self.recall == self.precision == 1:
            return same
        drawn = pair_draws(anchors.videos, candidates.videos, seed=self.seed)
        known = (anchors.labels >= 0)[:, None] & (candidates.labels >= 0)
        other = negatives & known & ~same
        wrong = count(same) * self.recall * (1 / self.precision - 1)  # [b], wanted
        share = wrong / count(other).clamp(min=1)
        return (same & (drawn < self.recall)) | (other & (drawn < share[:, None]))


def pair_draws(rows: Tensor, columns: Tensor, *, seed: int) -> Tensor:
    """A number in [0, 1) for each pair of ids `[b]` and `[M]`, float32 `[b, M]`, symmetric.

    The same on every device: integer arithmetic alone, the finaliser of splitmix64 (Steele et al.,
    OOPSLA 2014) on both ids and the seed.
    """
    one, other = rows[:, None], columns[None]
    mixed = _mixed(torch.minimum(one, other) + _as_int64(seed * _GOLDEN))
    mixed = _mixed(mixed + torch.maximum(one, other))
    return (mixed & 0xFFFFFF).float() / 0x1000000


_GOLDEN = 0x9E3779B97F4A7C15


def _mixed(numbers: Tensor) -> Tensor:
    for bits, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        numbers = (numbers ^ _shifted(numbers, bits)) * _as_int64(factor)
    return numbers ^ _shifted(numbers, 31)


def _shifted(numbers: Tensor, bits: int) -> Tensor:
    """To the right, zeros coming in: torch has no unsigned 64-bit arithmetic."""
    return (numbers >> bits) & ((1 << (64 - bits)) - 1)


def _as_int64(number: int) -> int:
    return (number + (1 << 63)) % (1 << 64) - (1 << 63)


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
