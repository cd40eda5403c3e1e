"""Detectors that know the label or the source video."""

import torch
from torch import Tensor

from vidcsl.methods.false_negatives.detector import DETECTORS, Detector, Samples
from vidcsl.registry import Option


@DETECTORS.register(
    "labels",
    "pairs of one label, an oracle",
    ORACLE_RECALL=Option(
        1.0, "labels: fraction of the false negatives that are flagged", minimum=0, maximum=1
    ),
    ORACLE_PRECISION=Option(
        1.0,
        "labels: fraction of the flagged pairs that are correct; pairs of two labels are added "
        "until it holds",
        minimum=1e-3,
        maximum=1,
    ),
)
class LabelOracle(Detector):
    """Flags other videos of the anchor's class; by default all of them, the upper bound.

    A worse oracle shows which recall and precision a detector needs, with all else alike. Pairs of
    videos are drawn by a hash of both and the seed, so that a pair is found, or wrongly added, in
    every step in which it meets, whichever of the two is the anchor.

    Args:
        oracle_recall: fraction of the false negatives that are flagged.
        oracle_precision: fraction of the flagged pairs that are correct; each true negative is
            added with the probability by which it holds over all pairs of the list, or each where
            even that is too few. At a recall of 0 nothing is added.
        chance: fraction of the pairs of the training list that share their label.
        seed: of the draw of pairs.
    """

    needs = ("labels",)

    def __init__(
        self,
        *,
        oracle_recall: float = 1.0,
        oracle_precision: float = 1.0,
        chance: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.recall, self.seed = oracle_recall, seed
        # One probability for all pairs: one of the anchor's own, or of the batch's, would flag a
        # pair from one side alone, or in some steps only.
        wrong = oracle_recall * (1 / oracle_precision - 1) * chance
        self.added = wrong / (1 - chance) if chance < 1 else 0.0

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
        if self.recall == 1 and not self.added:
            return same
        drawn = pair_draws(anchors.videos, candidates.videos, seed=self.seed)
        known = (anchors.labels >= 0)[:, None] & (candidates.labels >= 0)
        other = negatives & known & ~same
        return (same & (drawn < self.recall)) | (other & (drawn < self.added))


@DETECTORS.register("known_groups", "clips of one source video, which the list names")
class KnownGroups(Detector):
    """Flags clips cut from the anchor's source video, as CoCLR does (Han et al., 2020)."""

    needs = ("groups",)

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


def pair_draws(rows: Tensor, columns: Tensor, *, seed: int) -> Tensor:
    """A number in [0, 1) for each pair of ids `[b]` and `[M]`, float32 `[b, M]`, symmetric.

    The same on every device: integer arithmetic alone, the finaliser of splitmix64 (Steele et al.,
    OOPSLA 2014) on both ids and the seed.
    """

    def signed(number: int) -> int:
        # torch has no unsigned 64-bit arithmetic; two's complement wraps around in the same way.
        return (number + (1 << 63)) % (1 << 64) - (1 << 63)

    def shifted(numbers: Tensor, bits: int) -> Tensor:
        # int64 shifts keep the sign; the mask clears the copies of the sign bit.
        return (numbers >> bits) & ((1 << (64 - bits)) - 1)

    def mixed(numbers: Tensor) -> Tensor:
        for bits, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            numbers = (numbers ^ shifted(numbers, bits)) * signed(factor)
        return numbers ^ shifted(numbers, 31)

    one, other = rows[:, None], columns[None]
    golden = signed(seed * 0x9E3779B97F4A7C15)
    numbers = mixed(mixed(torch.minimum(one, other) + golden) + torch.maximum(one, other))
    return (numbers & 0xFFFFFF).float() / 0x1000000  # 24 bits: all that float32 tells apart
