"""Geometry of features on the unit sphere: alignment, uniformity, margins, and a map of it."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vidcsl.evaluation.features import Features
from vidcsl.methods.metrics import alignment, class_margins, effective_rank, uniformity

BINS = 50  # of the histogram of cosines, from -1 to 1: 0.04 each
LARGEST = 50  # eigenvalues of a spectrum that are kept
WITHIN = 1e-4  # LiDAR: added to the variance within videos along each direction, as published


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
        described["lidar"] = float(lidar(features.values))
    described["rankme"] = float(rankme(features.values[:, 0]))
    described |= describe_spectra(first, features.labels)
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


def describe_spectra(vectors: Tensor, labels: Tensor) -> dict[str, Any]:
    """How many directions the variance of `[n, D]` lies in, and how many of them the classes need.

    - `spectrum`: the largest eigenvalues of the covariance as fractions of its trace.
    - `participation_ratio`: (sum of the eigenvalues)^2 / sum of their squares, from 1 to D (Gao et
      al., "A theory of multineuronal dimensionality, dynamics and measurement", 2017).
    - `class_variance`: the fraction of the variance in the first K - 1 directions of K classes. It
      is 1 where each class is one point (neural collapse; Papyan, Han & Donoho, PNAS 2020).
    - `spectral_gap`: the eigenvalue K - 1 over the eigenvalue K.
    - `affinity_spectrum`: the largest eigenvalues of the K x K mean similarities of two classes.
      With K classes as orthogonal points all K are 1; features spread evenly have none.

    Args:
        vectors: unit `[n, D]`.
        labels: int64 `[n]`, -1 where unknown; without two classes there are the first two figures.
    """
    vectors = vectors.double()
    values = torch.linalg.svdvals(vectors - vectors.mean(dim=0)).square()
    total = values.sum().clamp(min=1e-12)
    described: dict[str, Any] = {
        "spectrum": (values / total)[:LARGEST].tolist(),
        "participation_ratio": float(total.square() / values.square().sum().clamp(min=1e-24)),
    }
    classes = labels[labels >= 0].unique()
    directions = len(classes) - 1
    if directions < 1:
        return described
    described["class_variance"] = float(values[:directions].sum() / total)
    if directions < len(values) and float(values[directions]) > 0:
        described["spectral_gap"] = float(values[directions - 1] / values[directions])
    means = torch.stack([vectors[labels == label].mean(dim=0) for label in classes])
    affinity = torch.linalg.eigvalsh(means @ means.T).flip(0).clamp(min=0)
    described["affinity_spectrum"] = affinity[:LARGEST].tolist()
    return described


def rankme(values: Tensor) -> Tensor:
    """Exponential of the entropy of the singular values of `[n, D]`, from 1 to min(n, D).

    Garrido et al., "RankMe: Assessing the Downstream Performance of Pretrained Self-Supervised
    Representations by Their Rank", ICML 2023. Neither centred nor squared, unlike `effective_rank`.
    """
    return _spread(torch.linalg.svdvals(values.double()), slack=1e-7)


def lidar(values: Tensor) -> Tensor:
    """How many directions tell videos apart by more than views of one video differ, from 1 to D.

    Thilak et al., "LiDAR: Sensing Linear Probing Performance in Joint Embedding SSL Architectures",
    ICLR 2024: RankMe's entropy of the eigenvalues of the covariance between videos, after the
    covariance within videos was whitened.

    Args:
        values: `[n, V, D]`, V >= 2.
    """
    values = values.double()
    centres = values.mean(dim=1)
    within = (values - centres[:, None]).flatten(0, 1)
    between = centres - centres.mean(dim=0)
    variances, axes = torch.linalg.eigh(within.T @ within / len(within))
    whitened = between @ axes / (variances.clamp(min=0) + WITHIN).sqrt()
    # The eigenvalues of the whitened covariance, by the singular values of its square root.
    return _spread(torch.linalg.svdvals(whitened).square(), slack=1e-7)


def _spread(values: Tensor, *, slack: float) -> Tensor:
    fractions = values / values.sum().clamp(min=1e-12) + slack
    return torch.special.entr(fractions).sum().exp()


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
