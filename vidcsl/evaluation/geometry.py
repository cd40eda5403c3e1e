"""How features lie on the unit sphere: the paper's explanation of fragility, in numbers."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vidcsl.evaluation.features import Features
from vidcsl.methods.metrics import alignment, class_margins, effective_rank, uniformity

BINS = 50


def describe_geometry(features: Features) -> dict[str, Any]:
    """Alignment, uniformity, class similarities and margin, effective rank, and a histogram.

    All on unit vectors. Positive pairs are the first and last view of a video; pairs of videos
    are taken between their first views. Class figures only where labels are known.
    """
    views = F.normalize(features.values, dim=2)
    first, last = views[:, 0], views[:, -1]
    described: dict[str, Any] = {
        "uniformity": float(uniformity(first)),
        "effective_rank": float(effective_rank(first)),
    }
    if views.shape[1] > 1:
        described["alignment"] = float(alignment(first, last))
    labelled = features.labels >= 0
    if labelled.sum() > 1:
        described.update(_class_similarity(first[labelled], features.labels[labelled]))
    return described


@dataclass(frozen=True)
class Projection:
    """The unit sphere of the features of n videos, seen from above their mean direction.

    Args:
        angles: float32 `[n, 2]`, degrees: how long a vector is says how far its video is from the
            mean direction, which is true (an azimuthal equidistant map); where it points to is
            the part of it in the two directions along which features differ most.
        shown: share of the features' variance about the mean direction in these two.
    """

    angles: Tensor
    shown: float


def project(features: Features) -> Projection:
    """The videos' first views on a map of the sphere; labels have no part in it."""
    first = F.normalize(features.values[:, 0], dim=1)
    pole = F.normalize(first.mean(dim=0), dim=0)
    heights = first @ pole
    sideways = first - heights[:, None] * pole
    _, lengths, directions = torch.linalg.svd(sideways, full_matrices=False)
    energy = lengths.square()
    plane = directions[:2]
    # A direction and its opposite are alike: its largest part decides, so that runs compare.
    largest = plane.gather(1, plane.abs().argmax(dim=1, keepdim=True))
    towards = F.pad(sideways @ (plane * largest.sign()).T, (0, 2 - len(plane)))
    distances = torch.atan2(sideways.norm(dim=1), heights).rad2deg()
    return Projection(
        F.normalize(towards, dim=1) * distances[:, None],
        float(energy[:2].sum() / energy.sum().clamp(min=1e-12)),
    )


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
    margins = class_margins(vectors, labels)
    judged = margins[~margins.isnan()]
    if len(judged):
        means["margin"] = float(judged.mean())
    return {**means, "histogram": histogram}
