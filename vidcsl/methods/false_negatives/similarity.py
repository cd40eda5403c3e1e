"""Detectors that flag the most similar candidates: a growing fraction, or FNC's nearest few."""

import torch
from torch import Tensor

from vidcsl.methods.false_negatives.detector import DETECTORS, Detector, Samples
from vidcsl.registry import Option


@DETECTORS.register("adaptive", "the most similar candidates, a fraction that grows (ours)")
class AdaptiveSimilarity(Detector):
    """Flags the most similar fraction of an anchor's candidates, which grows with training.

    A candidate's score is the mean of its similarity to each view of the anchor's video, so that
    one chance resemblance counts less. Our schedule, in the spirit of Gupta et al. (AAAI 2023) and
    Huynh et al. (WACV 2022).

    Args:
        ceiling: largest fraction of the candidates; 1 / number of classes is a natural choice.
        start: fraction of the training run before anything is flagged, as similarities mean
            little then.
        ramp: fraction of the run over which the flagged fraction rises to the ceiling.
    """

    aggregate = "mean"

    def __init__(self, *, ceiling: float = 0.1, start: float = 0.25, ramp: float = 0.5) -> None:
        super().__init__()
        self.ceiling, self.start, self.ramp = ceiling, start, ramp

    def forward(
        self,
        scores: Tensor,
        negatives: Tensor,
        anchors: Samples,
        candidates: Samples,
        progress: float,
    ) -> Tensor:
        """Bool `[b, M]`."""
        # A fraction of the row's own negatives: with a queue, or several sources, rows differ.
        fraction = self.ceiling * risen(progress, start=self.start, ramp=self.ramp)
        return nearest(scores, negatives, (fraction * negatives.sum(dim=1)).long())


@DETECTORS.register(
    "fnc",
    "the nearest few above a threshold (Huynh et al., 2022)",
    NEAREST=Option(10, "fnc: most candidates flagged for an anchor", minimum=1),
    THRESHOLD=Option(0.7, "fnc: least similarity of a flagged pair", minimum=-1, maximum=1),
)
class NearestFew(Detector):
    """FNC: flags the most similar candidates, where they are similar enough.

    Huynh et al., "Boosting Contrastive Self-Supervised Learning with False Negative Cancellation",
    WACV 2022. A candidate's score is the largest of its similarities to the views of the anchor's
    video, support views among them. The paper flags from the first step on: START 0, where the
    default for all detectors is a quarter of the run.

    Args:
        nearest: k, most candidates flagged for an anchor.
        threshold: least score.
        start: fraction of the training run before anything is flagged.
    """

    aggregate = "max"

    def __init__(self, *, nearest: int = 10, threshold: float = 0.7, start: float = 0.0) -> None:
        super().__init__()
        self.nearest, self.threshold, self.start = nearest, threshold, start

    def forward(
        self,
        scores: Tensor,
        negatives: Tensor,
        anchors: Samples,
        candidates: Samples,
        progress: float,
    ) -> Tensor:
        """Bool `[b, M]`."""
        if progress < self.start:
            return torch.zeros_like(negatives)
        counts = negatives.sum(dim=1).clamp(max=self.nearest)
        return nearest(scores, negatives, counts) & (scores > self.threshold)


def risen(progress: float, *, start: float, ramp: float) -> float:
    """0 before `start`, 1 from `start + ramp` on, a straight line between."""
    if progress < start:
        return 0.0
    return min(1.0, (progress - start) / ramp) if ramp else 1.0


def nearest(scores: Tensor, eligible: Tensor, counts: Tensor) -> Tensor:
    """Bool `[b, M]`: the highest scores of each row among the eligible, `counts` `[b]` of them.

    Ties with the last of them are taken too: a choice among equals would not be the same on every
    device.
    """
    if not counts.any():
        return torch.zeros_like(eligible)
    masked = torch.where(eligible, scores, -torch.inf)
    # Rows want different numbers: one topk for the largest, then the score at each row's own rank.
    highest = masked.topk(int(counts.max()), dim=1).values  # the score of each rank, best first
    least = highest.gather(1, counts.clamp(min=1)[:, None] - 1)
    return eligible & (masked >= least) & (counts > 0)[:, None]
