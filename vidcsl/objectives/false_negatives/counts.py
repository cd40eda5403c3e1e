"""How well a detector did, where labels are known."""

import torch
from torch import Tensor

from vidcsl.objectives.false_negatives.samples import Samples
from vidcsl.objectives.masks import count


def detection_counts(
    flagged: Tensor, negatives: Tensor, anchors: Samples, candidates: Samples, *, classes: int
) -> dict[str, Tensor]:
    """Counts of pairs for each class of anchors, int64 `[classes + 1]`, the last the unlabelled.

    Sums over blocks, steps and processes stay exact. `negatives`, `removed` (the
    flagged ones) and, over pairs whose two labels are known, `judged` (flagged), `right` (flagged
    and of the anchor's class) and `false_negatives` (of the anchor's class): precision = right /
    judged, recall = right / false_negatives.
    """
    same_class = anchors.same(candidates, "labels") & negatives
    labelled = anchors.labels >= 0
    pairs = {
        "negatives": count(negatives),
        "removed": count(flagged),
        "judged": torch.where(labelled, count(flagged & (candidates.labels >= 0)), 0),
        "right": count(flagged & same_class),
        "false_negatives": count(same_class),
    }
    place = torch.where(labelled, anchors.labels, classes)
    empty = place.new_zeros(classes + 1)
    return {name: empty.index_add(0, place, of_row) for name, of_row in pairs.items()}
