"""Detectors that flag what is most alike: a growing share, or FNC's nearest few."""

import numpy as np
import torch
from torch import Tensor

from vidcsl.methods.false_negatives.detector import Detector, Samples
from vidcsl.methods.losses import above, as_numbers, at_least, count


class AdaptiveSimilarity(Detector):
    """Flags the most similar share of an anchor's candidates, a share that grows with training.

    The views of the anchor's video vote together: a candidate's score is the mean of its
    similarity to each of them, so that one chance resemblance counts less. Our schedule, in the
    spirit of Gupta et al. (AAAI 2023) and Huynh et al. (WACV 2022).

    Args:
        ceiling: largest share of the candidates; 1 / number of classes is a natural choice.
        start: share of the training before anything is flagged, as similarities mean little then.
        ramp: share of the training over which the flagged share rises to the ceiling.
    """

    aggregate = "mean"

    def __init__(self, *, ceiling: float = 0.1, start: float = 0.25, ramp: float = 0.5) -> None:
        super().__init__()
        self.ceiling, self.start, self.ramp = ceiling, start, ramp

    def share(self, progress: float) -> float:
        """Flagged share of the candidates at `progress` in [0, 1]."""
        return self.ceiling * risen(progress, start=self.start, ramp=self.ramp)

    def forward(
        self,
        scores: Tensor,
        negatives: Tensor,
        anchors: Samples,
        candidates: Samples,
        progress: float,
    ) -> Tensor:
        """Bool `[b, M]`."""
        share = self.share(progress)
        if share == 0:
            return torch.zeros_like(negatives)
        return nearest(scores, negatives, (share * count(negatives)).long())


class NearestFew(Detector):
    """FNC: flags the `count` most similar candidates, where they are similar enough.

    Huynh et al., "Boosting Contrastive Self-Supervised Learning with False Negative Cancellation",
    WACV 2022. A candidate's score is the largest of its similarities to the views of the anchor's
    video, support views among them.

    Args:
        count: k, at most so many candidates of an anchor.
        threshold: least score.
        start: share of the training before anything is flagged.
    """

    aggregate = "max"

    def __init__(self, *, count: int = 10, threshold: float = 0.7, start: float = 0.0) -> None:
        super().__init__()
        self.count, self.threshold, self.start = count, threshold, start

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
        counts = count(negatives).clamp(max=self.count)
        return nearest(scores, negatives, counts) & above(scores, self.threshold)


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
    lowest = torch.finfo(scores.dtype).min / 4
    masked = scores.add(as_numbers(~eligible, scores.dtype), alpha=lowest)
    least = torch.where(counts > 0, _ranked(masked, counts.clamp(min=1)), torch.inf)
    return eligible & at_least(masked, least)


def _ranked(scores: Tensor, ranks: Tensor) -> Tensor:
    """The score of each row that stands at its rank, 1 being the highest: `[b]`."""
    if scores.device.type != "cpu":
        highest = scores.topk(int(ranks.max()), dim=1).values
        return highest.gather(1, ranks[:, None] - 1)[:, 0]
    # NumPy selects in vector registers: several times faster here than torch's topk.
    places = scores.shape[1] - ranks.numpy()
    selected = np.partition(scores.numpy(), np.unique(places), axis=1)
    return torch.from_numpy(selected[np.arange(len(places)), places])
