"""Linear probe: multinomial logistic regression on frozen features."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from vidcsl.errors import UserError
from vidcsl.evaluation.arrays import load_arrays, save_arrays
from vidcsl.evaluation.features import Features
from vidcsl.seeding import numpy_generator

PENALTIES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
LONE_PENALTY = 1e-2
FOLDS = 5
ROWS_TO_CHOOSE = 10_000
STEPS, STEPS_TO_CHOOSE, STEPS_TO_END = 100, 15, 40  # of L-BFGS: from zero, choosing, going on
TOLERANCE = 1e-6  # of the loss, from one step to the next

_PARTS = ("weight", "bias", "penalty", "held_out_top1")

Start = tuple[Tensor, Tensor]
"""Weight `[classes, D]` and bias `[classes]`."""


@dataclass(frozen=True)
class LinearProbe:
    """A fitted probe: `features @ weight.T + bias` are the logits.

    Args:
        weight, bias: `[classes, D]` and `[classes]`, for raw features (the standardisation that
            was used in fitting is folded in, so the probe is an `nn.Linear` that can be attacked).
        penalty: L2 penalty that was chosen.
        held_out_top1: cross-validated accuracy by which it was chosen; NaN where nothing could be
            held out.
    """

    weight: Tensor
    bias: Tensor
    penalty: float
    held_out_top1: float

    def save(self, path: Path) -> None:
        """Write it to an `.npz` file, whole or not at all."""
        save_arrays(path, {name: getattr(self, name) for name in _PARTS})

    @classmethod
    def load(cls, path: Path) -> "LinearProbe":
        """What `save` wrote.

        Raises:
            UserError: the file is damaged.
        """
        weight, bias, penalty, held_out_top1 = load_arrays(path, _PARTS)
        return cls(weight, bias, float(penalty), float(held_out_top1))

    def as_layer(self) -> nn.Linear:
        """The probe as a module."""
        layer = nn.Linear(self.weight.shape[1], self.weight.shape[0])
        layer.load_state_dict({"weight": self.weight, "bias": self.bias})
        return layer

    def logits(self, features: Tensor) -> Tensor:
        """Logits `[..., classes]` of features `[..., D]`."""
        return nn.functional.linear(features, self.weight, self.bias)


def fit_linear_probe(
    train: Features,
    *,
    classes: int,
    seed: int,
    penalties: Sequence[float] = PENALTIES,
    rows_to_choose: int = ROWS_TO_CHOOSE,
) -> LinearProbe:
    """Fit on every view of the labelled training videos.

    The penalty is chosen by cross-validation over five folds of training *groups*, so that no
    source video is on both sides, and the probe is then refitted on all. Test data are not seen.
    Choosing looks at fewer views of each video where there are many rows: views of a video say
    nearly the same. Where some class has one source only, nothing can be held out, and the penalty
    is `LONE_PENALTY`.

    Args:
        train: features of the training videos.
        classes: number of classes.
        seed: of the folds.
        penalties: L2 penalties to choose from.
        rows_to_choose: about how many rows the choice looks at.

    Raises:
        UserError: no labelled video, or fewer than two classes.
    """
    labelled = train.labels >= 0
    features, labels = train.values[labelled], train.labels[labelled]
    if len(labels.unique()) < 2:
        raise UserError("the linear probe needs labelled training videos of at least two classes")
    flat = features.flatten(0, 1)
    mean = flat.mean(dim=0)
    std = flat.std(dim=0).clamp(min=1e-6)
    standard = (features - mean) / std  # [n, V, D]
    sources = sources_of(train.groups[labelled], train.indices[labelled])
    penalty, held_out, start = LONE_PENALTY, float("nan"), None
    if can_hold_out(sources, labels):
        few = _spread(standard, most=max(1, rows_to_choose // len(labels)))
        folds = folds_of(sources, seed=seed)
        penalty, held_out, start = _choose(few, labels, folds, classes=classes, penalties=penalties)
    views = features.shape[1]
    weight, bias = _fit(
        standard.flatten(0, 1),
        labels.repeat_interleave(views),
        classes=classes,
        penalty=penalty,
        start=start,
        most=STEPS if start is None else STEPS_TO_END,
    )
    weight = weight / std
    return LinearProbe(weight, bias - weight @ mean, penalty, held_out)


def video_accuracy(logits: Tensor, labels: Tensor) -> tuple[float, float]:
    """Top-1 of videos and of single clips, in [0, 1]. Arguments as in `video_answers`."""
    videos, clips = video_answers(logits, labels)
    return float(videos.float().mean()), float(clips.mean())


def video_answers(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Whether each video is named right, bool `[n]`, and the share of its clips that are, `[n]`.

    Args:
        logits: `[n, V, classes]`; a video's prediction is the mean of its views' probabilities.
        labels: `[n]`.
    """
    videos = logits.softmax(dim=2).mean(dim=1).argmax(dim=1) == labels
    clips = logits.argmax(dim=2) == labels[:, None]
    return videos, clips.float().mean(dim=1)


def sources_of(groups: Tensor, indices: Tensor) -> Tensor:
    """A number for the source of each video, `[n]`; a video without group is its own."""
    own = torch.where(groups >= 0, groups, -2 - indices)
    return own.unique(return_inverse=True)[1]


def can_hold_out(sources: Tensor, labels: Tensor) -> bool:
    """Whether every class has two sources, one to learn from and one to be judged by."""
    pairs = torch.stack([labels, sources]).unique(dim=1)
    return bool(pairs[0].unique(return_counts=True)[1].min() > 1)


def folds_of(sources: Tensor, *, seed: int) -> Tensor:
    """Fold 0 to 4 of each video, int64 `[n]`; videos of a source are in one."""
    order = numpy_generator(seed, "probe folds").permutation(int(sources.max()) + 1)
    return torch.from_numpy(order)[sources] % FOLDS


def _spread(features: Tensor, *, most: int) -> Tensor:
    """At most so many views of each video, evenly spread: `[n, V, D]` to `[n, v, D]`."""
    views = features.shape[1]
    chosen = torch.linspace(0, views - 1, min(most, views)).round().long()
    return features[:, chosen]


def _choose(
    features: Tensor, labels: Tensor, folds: Tensor, *, classes: int, penalties: Sequence[float]
) -> tuple[float, float, Start]:
    """The penalty, the held-out accuracy that speaks for it, and where a fit with it may start.

    Penalties fall from the strongest to the weakest, each fit starting from the one before.
    """
    views = features.shape[1]
    rows, targets = features.flatten(0, 1), labels.repeat_interleave(views)
    fold_of = folds.repeat_interleave(views)
    path = sorted(penalties, reverse=True)
    right = torch.zeros(len(path))
    fitted: list[list[Start]] = [[] for _ in path]
    for fold in folds.unique().tolist():
        held = fold_of == fold
        learned, learned_targets = rows[~held], targets[~held]
        start: Start | None = None
        for step, penalty in enumerate(path):
            start = _fit(
                *(learned, learned_targets),
                classes=classes,
                penalty=penalty,
                start=start,
                most=STEPS_TO_CHOOSE,
            )
            named = (rows[held] @ start[0].T + start[1]).argmax(dim=1)
            right[step] += (named == targets[held]).sum()
            fitted[step].append(start)
    best = int(right.argmax())  # among equals the strongest: the simplest that does as well
    weights, biases = (torch.stack(each).mean(dim=0) for each in zip(*fitted[best], strict=True))
    return path[best], float(right[best]) / len(rows), (weights, biases)


def _fit(
    features: Tensor,
    labels: Tensor,
    *,
    classes: int,
    penalty: float,
    start: Start | None = None,
    most: int = STEPS,
) -> Start:
    if start is None:
        start = features.new_zeros(classes, features.shape[1]), features.new_zeros(classes)
    weight, bias = (each.clone().requires_grad_() for each in start)
    solver = torch.optim.LBFGS(
        [weight, bias],
        max_iter=most,
        history_size=10,
        tolerance_change=TOLERANCE,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        solver.zero_grad()
        loss = nn.functional.cross_entropy(features @ weight.T + bias, labels)
        loss = loss + penalty * weight.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        solver.step(closure)
    return weight.detach(), bias.detach()
