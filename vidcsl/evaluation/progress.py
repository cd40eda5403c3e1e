"""Scores of an encoder that is still being trained: cheap, and most of them without labels."""

import torch
import torch.nn.functional as F
from torch import Tensor

from vidcsl.evaluation.features import Features
from vidcsl.evaluation.geometry import lidar, rankme
from vidcsl.evaluation.probes import can_hold_out, fit_linear_probe, sources_of
from vidcsl.methods.metrics import alignment, uniformity
from vidcsl.teachers.neighbours import Teacher

NEIGHBOURS, TEMPERATURE = 10, 0.07  # of the kNN vote, see `vidcsl.evaluation.neighbours`
LABEL_FREE = ("rankme", "lidar")  # by which a checkpoint can be chosen; higher is better


def score_features(
    features: Features, *, classes: int, seed: int, teacher: Teacher | None = None
) -> dict[str, float]:
    """How far training has come, from two views of some training videos.

    Args:
        features: with V >= 2 views.
        classes: number of classes.
        seed: of the folds of the probe.
        teacher: of the run, if it has one.

    Returns:
        `rankme`, `lidar`, `alignment`, `uniformity`; `teacher_agreement`, the ratio of each video's
        nearest NEIGHBOURS that are among those by the teacher; where there are labels,
        `knn_top1`, by neighbours from other sources than the video's own, and `probe_top1`,
        of a linear probe on sources that it has not seen (each class needs two).
    """
    views = F.normalize(features.values, dim=2)
    scores = {
        "rankme": float(rankme(features.values[:, 0])),
        "lidar": float(lidar(features.values)),
        "alignment": float(alignment(views[:, 0], views[:, -1])),
        "uniformity": float(uniformity(views[:, 0])),
    }
    pooled = features.pooled()
    similarities = pooled @ pooled.T
    if teacher is not None:
        vectors = teacher.rows(features.indices)
        known = vectors.any(dim=1)
        scores["teacher_agreement"] = shared_neighbours(
            similarities[known][:, known], vectors[known] @ vectors[known].T
        )
    labelled = features.labels >= 0
    labels = features.labels[labelled]
    sources = sources_of(features.groups[labelled], features.indices[labelled])
    if min(len(labels.unique()), len(sources.unique())) < 2:
        return scores
    own = sources[:, None] == sources[None, :]
    # Clips of one source are alike in everything: they would answer for each other.
    others = similarities[labelled][:, labelled].masked_fill(own, -torch.inf)
    near = others.topk(min(NEIGHBOURS, len(others)), dim=1)
    votes = others.new_zeros(len(others), classes)
    votes.scatter_add_(1, labels[near.indices], (near.values / TEMPERATURE).exp())
    scores["knn_top1"] = float((votes.argmax(dim=1) == labels).float().mean())
    if can_hold_out(sources, labels):
        scores["probe_top1"] = fit_linear_probe(
            features, classes=classes, seed=seed, penalties=(1e-3, 1e-2, 1e-1)
        ).held_out_top1
    return scores


def shared_neighbours(ours: Tensor, theirs: Tensor) -> float:
    """The mean ratio of each item's nearest that two similarities `[n, n]` have in common."""
    itself = torch.eye(len(ours), dtype=torch.bool)
    count = min(NEIGHBOURS, len(ours) - 1)
    near = [each.masked_fill(itself, -torch.inf).topk(count, dim=1)[1] for each in (ours, theirs)]
    same = (near[0][:, :, None] == near[1][:, None, :]).any(dim=2)
    return float(same.float().mean())


def worded(scores: dict[str, float], *, chance: float) -> str:
    """One line for the terminal: accuracies in per cent, `chance` in [0, 1] beside the first."""
    names = {"knn_top1": "kNN", "probe_top1": "probe", "teacher_agreement": "teacher's neighbours"}
    parts = [f"{name} {scores[key]:.0%}" for key, name in names.items() if key in scores]
    if "knn_top1" in scores:
        parts[0] += f" (chance {chance:.0%})"
    parts += [f"RankMe {scores['rankme']:.1f}", f"LiDAR {scores['lidar']:.1f}"]
    return ", ".join(parts)
