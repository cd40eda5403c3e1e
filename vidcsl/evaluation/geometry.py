"""Geometry of features on the unit sphere: alignment, uniformity, margins, and a map of it."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vidcsl.evaluation.features import Features
from vidcsl.methods.metrics import alignment, class_margins, effective_rank, uniformity

BINS = 50  # of the histogram of cosines, from -1 to 1: 0.04 each


def describe_geometry(features: Features) -> dict[str, Any]:
    """Alignment, uniformity, effective rank, class similarities and margin, and a histogram.

    Computed on unit vectors. Positive pairs are the first and last view of a video; pairs of videos
    are compared by their first views. Class figures need labelled videos.
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
    if labelled.sum() < 2:
        return described

    vectors, labels = first[labelled], features.labels[labelled]
    similarities = vectors @ vectors.T
    same = labels[:, None] == labels[None, :]
    pair = torch.ones_like(same).triu(diagonal=1)  # each pair once, no vector with itself
    groups = {"same_class": similarities[same & pair], "other_class": similarities[~same & pair]}
    for name, values in groups.items():
        if len(values):
            described[f"{name}_similarity"] = float(values.mean())
    margins = class_margins(vectors, labels)
    defined = margins[~margins.isnan()]
    if len(defined):
        described["margin"] = float(defined.mean())
    described["histogram"] = {
        **{
            name: torch.histc(values, BINS, min=-1, max=1).int().tolist()
            for name, values in groups.items()
        },
        "edges": torch.linspace(-1, 1, BINS + 1).tolist(),
    }
    return described


@dataclass(frozen=True)
class Projection:
    """Features on the unit sphere as an azimuthal equidistant map about their mean direction.

    Args:
        angles: float32 `[n, 2]` in degrees. The length of a row is the exact angle between its
            video and the mean direction. Its direction is that in the plane of the two principal
            directions of the features.
        shown: ratio of the variance about the mean direction that lies in this plane.
    """

    angles: Tensor
    shown: float


def project(features: Features) -> Projection:
    """Map the videos' first views; labels are not used."""
    first = F.normalize(features.values[:, 0], dim=1)
    pole = F.normalize(first.mean(dim=0), dim=0)
    heights = first @ pole
    sideways = first - heights[:, None] * pole
    _, lengths, directions = torch.linalg.svd(sideways, full_matrices=False)
    energy = lengths.square()
    plane = directions[:2]
    # The sign of a principal direction is arbitrary. Its largest entry is made positive, so that
    # maps of similar features look alike.
    largest = plane.gather(1, plane.abs().argmax(dim=1, keepdim=True))
    towards = F.pad(sideways @ (plane * largest.sign()).T, (0, 2 - len(plane)))
    # atan2 is exact near the pole, where acos of the height loses half of the digits.
    distances = torch.atan2(sideways.norm(dim=1), heights).rad2deg()
    return Projection(
        F.normalize(towards, dim=1) * distances[:, None],
        float(energy[:2].sum() / energy.sum().clamp(min=1e-12)),
    )
