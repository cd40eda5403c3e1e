"""False negatives of one step: found block by block, and judged where labels are known."""

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from vidcsl.objectives.false_negatives import Detector, Samples, detection_counts
from vidcsl.objectives.losses import Pairs
from vidcsl.objectives.metrics import Metric, Share


@dataclass
class Detection:
    """A detector at work on the blocks of one step.

    Args:
        detector: see `false_negatives`.
        rows, columns: the samples of this process's anchors and of all candidates.
        pairs: what each candidate is to each anchor, `(anchors, candidates) -> Pairs`.
        scores: `(similarities of the rows, rows) -> [b, M]`, what the detector looks at.
        classes: how many labels there are.
        progress: share of the training that is done.
    """

    detector: Detector
    rows: Samples
    columns: Samples
    pairs: Callable[[Samples, Samples], Pairs]
    scores: Callable[[Tensor, slice], Tensor]
    classes: int
    progress: float
    counts: dict[str, Tensor] = field(default_factory=dict)

    def __call__(self, similarities: Tensor, rows: slice) -> tuple[Pairs, Tensor]:
        """The pairs of a block of whole videos, untreated, and which are flagged, `[b, M]`."""
        anchors = self.rows[rows]
        untreated = self.pairs(anchors, self.columns)
        negatives = untreated.negatives()
        scores = self.scores(similarities, rows)
        flagged = self.detector(scores, negatives, anchors, self.columns, self.progress)
        found = detection_counts(flagged, negatives, anchors, self.columns, classes=self.classes)
        for name, count in found.items():
            self.counts[name] = count + self.counts.get(name, 0)
        return untreated, flagged

    def metrics(self) -> dict[str, Metric]:
        """The share of the negatives that was flagged, and how often rightly."""
        counts = self.counts
        return {
            "removed": Share(counts["removed"], counts["negatives"]),
            "precision": Share(counts["right"], counts["judged"]),
            "recall": Share(counts["right"], counts["false_negatives"]),
        }
