"""How features lie on the unit sphere: the paper's explanation of fragility, in numbers."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vidcsl.evaluation.features import Features
from vidcsl.objectives.losses import alignment, uniformity

BINS = 50


def describe_geometry(features: Features) -> dict[str, Any]:
    """Alignment, uniformity, class similarities, effective rank and a histogram of similarities.

    All on unit vectors. Positive pairs are the first and last view of a video; pairs of videos
    are taken between their first views. Class figures only where labels are known.
    """
    views = F.normalize(features.values, dim=2)
    first, last = views[:, 0], views[:, -1]
    described: dict[str, Any] = {
        "uniformity": float(uniformity(first)),
        "effective_rank": effective_rank(first),
    }
    if views.shape[1] > 1:
        described["alignment"] = float(alignment(first, last))
    labelled = features.labels >= 0
    if labelled.sum() > 1:
        described.update(_class_similarity(first[labelled], features.labels[labelled]))
    return described


def effective_rank(vectors: Tensor) -> float:
    """Exponential of the entropy of the covariance's spectrum, from 1 to D.

    Roy & Vetterli, "The effective rank", EUSIPCO 2007.
    """
    spectrum = torch.linalg.svdvals(vectors - vectors.mean(dim=0)).square()
    share = spectrum / spectrum.sum().clamp(min=1e-12)
    return float(torch.exp(torch.special.entr(share).sum()))


def _class_similarity(vectors: Tensor, labels: Tensor) -> dict[str, Any]:
    similarities = vectors @ vectors.T
    same = labels[:, None] == labels[None, :]
    pair = torch.ones_like(same).triu(diagonal=1)  # each pair once, no vector with itself
    groups = {"same_class": similarities[same & pair], "other_class": similarities[~same & pair]}
    histogram: dict[str, Any] = {
        name: torch.histc(values, BINS, min=-1, max=1).int().tolist()
        for name, values in groups.items()
    }
    histogram["edges"] = torch.linspace(-1, 1, BINS + 1).tolist()
    means = {
        f"{name}_similarity": float(values.mean()) for name, values in groups.items() if len(values)
    }
    return {**means, "histogram": histogram}
