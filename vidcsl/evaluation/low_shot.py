"""How much can be learned from few labels: a linear probe on a share of the training videos."""

from typing import Any

import torch
from torch import Tensor

from vidcsl.evaluation.features import Features
from vidcsl.evaluation.intervals import bootstrap_interval
from vidcsl.evaluation.linear import fit_linear_probe, video_answers
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
        `{"videos": how many were used, "top1", "clip_top1": means, "draws": top-1 of each draw,
        "intervals": {"top1": (low, high), "clip_top1"}}`, by bootstrap over the test videos.
    """
    chosen = [draw_videos(train.labels, share, seed=seed, draw=draw) for draw in range(draws)]
    answers = []
    for rows in chosen:
        few = Features(*(part[rows] for part in train.parts))
        probe = fit_linear_probe(few, classes=classes, seed=seed)
        answers.append(video_answers(probe.logits(test.values), test.labels))
    # Of each test video: in how many of the draws it is right.
    videos, clips = (
        torch.stack([right.double() for right in each]) for each in zip(*answers, strict=True)
    )
    found = {"top1": videos.mean(dim=0), "clip_top1": clips.mean(dim=0)}
    return {
        "videos": len(chosen[0]),
        **{key: float(right.mean()) for key, right in found.items()},
        "draws": videos.mean(dim=1).tolist(),
        "intervals": {key: bootstrap_interval(right, seed=seed) for key, right in found.items()},
    }


def draw_videos(labels: Tensor, share: float, *, seed: int, draw: int) -> Tensor:
    """The rows of a draw: `share` of the labelled videos of every class, and at least one of each.

    Args:
        labels: int64 `[V]`; -1 is unlabelled.
        share: in (0, 1].
        seed: the run's.
        draw: the number of the draw.

    Returns:
        int64, ascending.
    """
    rng = numpy_generator(seed, draw, "low shot")
    kept = []
    for label in labels[labels >= 0].unique().tolist():
        rows = (labels == label).nonzero()[:, 0]
        order = torch.from_numpy(rng.permutation(len(rows)))
        kept.append(rows[order[: max(1, round(share * len(rows)))]])
    return torch.cat(kept).sort().values
