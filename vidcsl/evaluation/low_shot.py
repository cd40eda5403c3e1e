"""How much can be learned from few labels: a linear probe on a share of the training videos."""

from typing import Any

import torch
from torch import Tensor

from vidcsl.evaluation.features import Features
from vidcsl.evaluation.linear import fit_linear_probe, video_accuracy
from vidcsl.seeding import numpy_generator


def low_shot_accuracy(
    train: Features, test: Features, *, share: float, classes: int, draws: int, seed: int
) -> dict[str, Any]:
    """Mean accuracy of probes on `draws` random choices of the labelled training videos.

    The same share of every class is kept, at least one video. Everything that a probe chooses, it
    chooses from these alone.

    Args:
        train, test: features; test labels are all known.
        share: of the training videos whose labels are used, in (0, 1].
        classes: number of classes.
        draws: how often videos are chosen.
        seed: of the choices.

    Returns:
        `{"videos": how many were used, "top1", "clip_top1": means, "draws": top-1 of each draw}`.
    """
    chosen = [_choice(train.labels, share, seed=seed, draw=draw) for draw in range(draws)]
    scores = []
    for rows in chosen:
        few = Features(*(part[rows] for part in train.parts))
        probe = fit_linear_probe(few, classes=classes, seed=seed)
        scores.append(video_accuracy(probe.logits(test.values), test.labels))
    videos, clips = (sum(each) / draws for each in zip(*scores, strict=True))
    return {
        "videos": len(chosen[0]),
        "top1": videos,
        "clip_top1": clips,
        "draws": [video for video, _ in scores],
    }


def _choice(labels: Tensor, share: float, *, seed: int, draw: int) -> Tensor:
    rng = numpy_generator(seed, draw, "low shot")
    kept = []
    for label in labels[labels >= 0].unique().tolist():
        rows = (labels == label).nonzero()[:, 0]
        order = torch.from_numpy(rng.permutation(len(rows)))
        kept.append(rows[order[: max(1, round(share * len(rows)))]])
    return torch.cat(kept).sort().values
