"""What becomes of the pairs that a detector flags, and how often the detector was correct."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from vidcsl.methods.false_negatives.detector import Detector, NoDetector, Samples
from vidcsl.methods.losses import Pairs
from vidcsl.registry import Option, Registry

Treatment = Callable[[Pairs, Tensor, Tensor], Pairs]
"""`(pairs, flagged, sure) -> Pairs`: an entry of TREATMENTS, its options bound.

Both masks are bool `[b, M]`; `sure` holds the flagged pairs that the detector is most certain of.
"""

TREATMENTS: Registry[Callable[..., Pairs]] = Registry(
    "FALSE_NEGATIVES.TREATMENT", default="eliminate", meaning="what happens to flagged pairs"
)


@TREATMENTS.register("eliminate", "they leave the denominator of the loss")
def eliminate(pairs: Pairs, flagged: Tensor, sure: Tensor) -> Pairs:
    """Drop the flagged negatives from the loss."""
    return replace(pairs, ignored=pairs.ignored | (flagged & ~pairs.positives))


@TREATMENTS.register(
    "rescale", "they leave the denominator, and the negatives that stay count for as many"
)
def rescale(pairs: Pairs, flagged: Tensor, sure: Tensor) -> Pairs:
    """Eliminate the flagged and scale up the rest, as GloFND's authors do.

    The negatives' sum of n terms becomes n times the mean of those that stay: otherwise rows of
    which much is flagged are repelled less.
    """
    kept = eliminate(pairs, flagged, sure)
    # Counted, not weighted: the paper's n is a number of terms.
    before, after = (each.negatives().sum(dim=1, keepdim=True) for each in (pairs, kept))
    factors = torch.where(kept.negatives(), before / after.clamp(min=1), 1.0)
    weights = factors if pairs.weights is None else pairs.weights * factors
    return replace(kept, weights=weights)


@TREATMENTS.register("attract", "they become positives")
def attract(pairs: Pairs, flagged: Tensor, sure: Tensor) -> Pairs:
    """Make the flagged positives; they stay in the denominator (FNC's released form)."""
    return replace(pairs, positives=pairs.positives | (flagged & ~pairs.ignored))


@TREATMENTS.register(
    "attract_sure",
    "those that the detector is sure of become positives, the others leave the denominator",
)
def attract_sure(pairs: Pairs, flagged: Tensor, sure: Tensor) -> Pairs:
    """Attract the surest, eliminate the others.

    A wrong positive does harm, a negative that is left out by mistake hardly does: so many pairs
    can be eliminated, and few of them attracted.
    """
    return eliminate(attract(pairs, sure, sure), flagged & ~sure, sure)


@TREATMENTS.register(
    "weight",
    "they count as negatives by FALSE_NEGATIVES.WEIGHT",
    WEIGHT=Option(
        0.5,
        "weight of a flagged pair; 0 eliminates it, 1 leaves it as it is",
        minimum=0,
        maximum=1,
    ),
)
def weigh(pairs: Pairs, flagged: Tensor, sure: Tensor, *, weight: float) -> Pairs:
    """Let the flagged count as negatives by `weight`: 1 leaves them as they are, 0 eliminates."""
    factors = torch.where(flagged & ~pairs.positives, weight, 1.0)
    return replace(pairs, weights=factors if pairs.weights is None else pairs.weights * factors)


@dataclass(frozen=True)
class FalseNegatives:
    """How a contrastive method finds false negatives and what it does with them.

    By default it finds none: plain contrastive learning.

    Args:
        detector: flags pairs.
        treatment: decides what they are to the loss.
        aggregate: how the views of a video score a candidate, one of AGGREGATES; "auto": as the
            detector's authors do.
        judge: the scoring encoder, "online" or "momentum".
        voters: number of support views, the last ones of each video, which learn nothing.
    """

    detector: Detector = field(default_factory=NoDetector)
    treatment: Treatment = eliminate
    aggregate: str = "auto"
    judge: str = "online"
    voters: int = 0


def detection_counts(
    flagged: Tensor, negatives: Tensor, anchors: Samples, candidates: Samples, *, classes: int
) -> dict[str, Tensor]:
    """Counts of pairs for each class of anchors, int64 `[classes + 1]`, the last the unlabelled.

    Counts, unlike fractions, stay exact when summed over blocks, steps and processes. `negatives`
    and `flagged` count all pairs; over pairs with two known labels, `checked` (flagged), `correct`
    (flagged, of the anchor's class) and `false_negatives` (of the anchor's class): precision =
    correct / checked, recall = correct / false_negatives.
    """
    same_class = anchors.same(candidates, "labels") & negatives
    labelled = anchors.labels >= 0
    # A flag is right or wrong only where both labels are known; others are not judged.
    checked = (flagged & (candidates.labels >= 0)).sum(dim=1)
    pairs = {
        "negatives": negatives.sum(dim=1),
        "flagged": flagged.sum(dim=1),
        "checked": torch.where(labelled, checked, 0),
        "correct": (flagged & same_class).sum(dim=1),
        "false_negatives": same_class.sum(dim=1),
    }
    place = torch.where(labelled, anchors.labels, classes)
    empty = place.new_zeros(classes + 1)
    return {name: empty.index_add(0, place, of_row) for name, of_row in pairs.items()}
