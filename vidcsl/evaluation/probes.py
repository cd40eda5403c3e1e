"""Probes on frozen features: linear, low-shot (a linear probe on few labels) and attentive.

Every probe chooses its settings on videos that are held out of the training list. A group (clips
cut from one source video) is never on both sides: such clips look so much alike that the probe
would be rewarded for remembering them. Test data have no part in any choice.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidcsl.errors import UserError
from vidcsl.evaluation.features import Features
from vidcsl.evaluation.statistics import proportion_interval
from vidcsl.io import load_arrays, save_arrays
from vidcsl.models.encoder import Encoder
from vidcsl.seeding import numpy_generator, seed_of

# ----------------------------------------------------------------------
# Held-out training videos.

FOLDS = 5


def sources_of(groups: Tensor, indices: Tensor) -> Tensor:
    """A number for the source of each video, `[n]`; a video without group is its own source."""
    own = torch.where(groups >= 0, groups, -2 - indices)
    return own.unique(return_inverse=True)[1]


def can_hold_out(sources: Tensor, labels: Tensor) -> bool:
    """Whether every class has two sources, one to learn from and one to hold out."""
    pairs = torch.stack([labels, sources]).unique(dim=1)
    return bool(pairs[0].unique(return_counts=True)[1].min() > 1)


def folds_of(sources: Tensor, *, seed: int) -> Tensor:
    """Fold 0 to 4 of each video, int64 `[n]`; all videos of a source are in one fold."""
    order = numpy_generator(seed, "probe folds").permutation(int(sources.max()) + 1)
    return torch.from_numpy(order)[sources] % FOLDS


# ----------------------------------------------------------------------
# Accuracy.


def correct_predictions(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Whether each video is classified correctly, bool `[n]`, and the ratio of its clips, `[n]`.

    Args:
        logits: `[n, V, classes]`; a video's prediction is the mean of its views' probabilities.
        labels: `[n]`.
    """
    videos = logits.softmax(dim=2).mean(dim=1).argmax(dim=1) == labels
    clips = logits.argmax(dim=2) == labels[:, None]
    return videos, clips.float().mean(dim=1)


def video_accuracy(logits: Tensor, labels: Tensor) -> tuple[float, float]:
    """Top-1 of videos and of single clips, in [0, 1]. Arguments as in `correct_predictions`."""
    videos, clips = correct_predictions(logits, labels)
    return float(videos.float().mean()), float(clips.mean())


# ----------------------------------------------------------------------
# Linear probe: multinomial logistic regression.

# A decade apart: accuracy changes little in between, and each one costs a fit in every fold.
PENALTIES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
DEFAULT_PENALTY = 1e-2  # where nothing can be held out
ROWS_TO_CHOOSE = 10_000
TOLERANCE = 1e-5  # how far above its minimum the loss may end, see `logistic_regression`
STEPS, INNER_STEPS = 50, 500  # at most so many of Newton's method, and inside each

_PARTS = ("weight", "bias", "penalty", "held_out_top1")

Weights = tuple[Tensor, Tensor]
"""Weight `[classes, D]` and bias `[classes]`."""


@dataclass(frozen=True)
class LinearProbe:
    """A fitted linear probe: `features @ weight.T + bias` are the logits.

    Args:
        weight, bias: `[classes, D]` and `[classes]`, for raw features: the standardisation of the
            fit is folded in, so that the probe is an `nn.Linear` that can be attacked.
        penalty: the chosen L2 penalty.
        held_out_top1: accuracy on held-out training videos, each by a penalty in whose choice it
            had no part; NaN if nothing could be held out.
    """

    weight: Tensor
    bias: Tensor
    penalty: float
    held_out_top1: float

    def save(self, path: Path) -> None:
        """Write the probe to an `.npz` file, atomically."""
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
        return F.linear(features, self.weight, self.bias)


def fit_linear_probe(
    train: Features,
    *,
    classes: int,
    seed: int,
    penalties: Sequence[float] = PENALTIES,
) -> LinearProbe:
    """Fit a linear probe on every view of the labelled training videos.

    The penalty is chosen by cross-validation over five folds of sources, and the probe is then
    refitted on all videos. The choice takes fewer views per video if there are many rows, since
    views of a video are nearly redundant. If a class has a single source, nothing can be held out
    and the penalty is `DEFAULT_PENALTY`.

    Args:
        train: features of the training videos.
        classes: number of classes.
        seed: seed of the folds.
        penalties: L2 penalties to choose from.

    Raises:
        UserError: no labelled video, or fewer than two classes.
    """
    labelled = train.labels >= 0
    features, labels = train.values[labelled], train.labels[labelled]
    if len(labels.unique()) < 2:
        raise UserError("the linear probe needs labelled training videos of at least two classes")
    views = features.shape[1]
    flat = features.flatten(0, 1)
    mean = flat.mean(dim=0)
    std = flat.std(dim=0).clamp(min=1e-6)  # a constant feature stays finite
    standard = (features - mean) / std  # [n, V, D]
    # Turned to their principal directions: the same solution, found in far fewer steps.
    turn = torch.linalg.eigh(standard.flatten(0, 1).T @ standard.flatten(0, 1))[1]
    standard = standard @ turn

    penalty, held_out, start = DEFAULT_PENALTY, float("nan"), None
    sources = sources_of(train.groups[labelled], train.indices[labelled])
    if can_hold_out(sources, labels):
        most = max(1, ROWS_TO_CHOOSE // len(labels))
        folds, few = folds_of(sources, seed=seed), spread_views(standard, most=most)
        penalty, held_out, start = _choose_penalty(
            few, labels, folds, classes=classes, penalties=penalties
        )
    weight, bias = logistic_regression(
        standard.flatten(0, 1),
        labels.repeat_interleave(views),
        classes=classes,
        penalty=penalty,
        start=start,
        every=max(1, len(labels) * views // ROWS_TO_CHOOSE),
    )
    # Undo both: weight @ turn.T @ (x - mean) / std + bias, for raw x.
    weight = weight @ turn.T / std
    return LinearProbe(weight, bias - weight @ mean, penalty, held_out)


def spread_views(features: Tensor, *, most: int) -> Tensor:
    """At most `most` views of each video, evenly spread: `[n, V, D]` to `[n, v, D]`."""
    views = features.shape[1]
    return features[:, torch.linspace(0, views - 1, min(most, views)).round().long()]


def _choose_penalty(
    features: Tensor, labels: Tensor, folds: Tensor, *, classes: int, penalties: Sequence[float]
) -> tuple[float, float, Weights]:
    """The penalty that names most held-out clips, its accuracy, and its folds' mean weights.

    The accuracy is of videos, and of each fold by the penalty that the other folds alone choose:
    the best of several on the videos that it was chosen on would flatter it.
    """
    views = features.shape[1]
    # From the strongest to the weakest penalty, each fit starting from the one before: the
    # solutions lie close to each other, and the strongest is found in a few steps from zero.
    path = sorted(penalties, reverse=True)
    clips, videos = torch.zeros(2, FOLDS, len(path))  # predicted correctly
    fitted: list[list[Weights]] = [[] for _ in path]
    for fold in folds.unique().tolist():
        held = folds == fold
        learned, targets = features[~held].flatten(0, 1), labels[~held].repeat_interleave(views)
        start: Weights | None = None
        for step, penalty in enumerate(path):
            start = logistic_regression(
                learned, targets, classes=classes, penalty=penalty, start=start
            )
            correct = correct_predictions(F.linear(features[held], *start), labels[held])
            videos[fold, step], clips[fold, step] = (each.sum() for each in correct)
            fitted[step].append(start)
    best = int(clips.sum(dim=0).argmax())  # among equals the strongest: the simplest as good
    others = (clips.sum(dim=0) - clips).argmax(dim=1, keepdim=True)  # [folds, 1]
    held_out = float(videos.gather(1, others).sum()) / len(labels)
    weights, biases = (torch.stack(each).mean(dim=0) for each in zip(*fitted[best], strict=True))
    return path[best], held_out, (weights, biases)


def logistic_regression(
    features: Tensor,
    labels: Tensor,
    *,
    classes: int,
    penalty: float,
    start: Weights | None = None,
    every: int = 1,
) -> Weights:
    """Minimise cross-entropy + penalty * |weight|^2 to the tolerance that the penalties share.

    Newton's method, its steps by conjugate gradients (Nocedal & Wright, "Numerical Optimization",
    chapter 7). It ends where the loss is at most TOLERANCE above its minimum, as a fraction of the
    loss and of what was gained over zero weights, whichever is less. That is known without the
    minimum, in one of two ways. The loss is strongly convex in the weights, so the squared length
    of its gradient over 4 penalty bounds what is left; of the biases, which have no penalty, it is
    estimated by their curvature. At weak penalties this bound is far too careful, but a whole step
    of Newton's method leaves a fraction of what it gains, so that one which gains half of the
    tolerance is the last. Without such an end weak penalties, which take longest, would be judged
    by where their fit was cut off.

    Args:
        features: `[n, D]`; the nearer to uncorrelated its columns, the faster.
        labels: `[n]`.
        classes: number of classes.
        penalty: above 0.
        start: weights near the solution; by default zeros.
        every: the first steps see the curvature of every so many-th row, which saves time where
            rows are nearly redundant, as views of a video are; the last ones see that of all.
    """
    rows, count = features.new_ones(len(features), 1), len(features)
    inputs = torch.cat([features, rows], dim=1)  # the bias is the weight of a column of ones
    if start is None:
        weights = inputs.new_zeros(classes, inputs.shape[1])
    else:
        weights = torch.cat([start[0], start[1][:, None]], dim=1)
    decay = inputs.new_full((inputs.shape[1],), 2 * penalty)
    decay[-1] = 0
    energy, some = inputs.square().mean(dim=0), inputs[::every].contiguous()

    def evaluated(weights: Tensor) -> tuple[float, Tensor]:
        logs = (inputs @ weights.T).log_softmax(dim=1)
        loss = F.nll_loss(logs, labels) + (decay * weights.square()).sum() / 2
        return float(loss), logs.exp_()

    loss, probabilities = evaluated(weights)
    for number in range(STEPS):
        errors = probabilities.clone()
        errors[torch.arange(count), labels] -= 1
        gradient = errors.T @ inputs / count + decay * weights
        curvature = (probabilities * (1 - probabilities)).mean(dim=0).clamp(min=1e-8)  # [classes]
        of_weights = gradient[:, :-1].square().sum() / (4 * penalty)
        left = float(of_weights + (gradient[:, -1].square() / (2 * curvature)).sum())
        if left <= TOLERANCE * min(loss, math.log(classes) - loss):
            break
        scale = 1 / (curvature[:, None] * energy + decay)
        step = _newton_step(some, probabilities[::every], gradient, decay=decay, scale=scale)
        slope, size = float((gradient * step).sum()), 1.0
        found = evaluated(weights + step)
        while found[0] > loss + 1e-4 * size * slope and size > 1e-3:
            size /= 2
            found = evaluated(weights + size * step)
        better = found[0] < loss
        if better:
            weights, (loss, probabilities) = weights + size * step, found
        # What the model says a step gains: conjugate gradients end where it is half of the slope.
        small = size == 1 and -slope / 2 <= 0.5 * TOLERANCE * min(loss, math.log(classes) - loss)
        if every > 1 and (small or not better or number >= STEPS // 3):
            every, some = 1, inputs  # some rows have shown what they can
        elif small or not better:  # float32 tells no smaller losses apart
            break
    return weights[:, :-1].contiguous(), weights[:, -1].contiguous()


def _newton_step(
    inputs: Tensor, probabilities: Tensor, gradient: Tensor, *, decay: Tensor, scale: Tensor
) -> Tensor:
    """About minus the inverse Hessian times the gradient, `[classes, D + 1]`.

    Args:
        inputs: `[n, D + 1]`.
        probabilities: `[n, classes]`.
        gradient: `[classes, D + 1]`.
        decay: `[D + 1]`, the Hessian of the penalty.
        scale: `[classes, D + 1]`, about the inverse of the Hessian's diagonal.
    """
    step, residual = torch.zeros_like(gradient), -gradient
    direction = scale * residual
    rest = first = float((residual * direction).sum())
    for _ in range(INNER_STEPS):
        moved = inputs @ direction.T
        moved = probabilities * (moved - (probabilities * moved).sum(dim=1, keepdim=True))
        curved = moved.T @ inputs / len(inputs) + decay * direction
        length = rest / float((direction * curved).sum())
        step += length * direction
        residual -= length * curved
        scaled = scale * residual
        before, rest = rest, float((residual * scaled).sum())
        # Near enough: the next step of Newton's method corrects this one.
        if rest <= 0.2 * first:
            break
        direction = scaled + rest / before * direction
    return step


# ----------------------------------------------------------------------
# Low-shot probe: a linear probe on a ratio of the training videos.


def low_shot_accuracy(
    train: Features, test: Features, *, ratio: float, classes: int, draws: int, seed: int
) -> dict[str, Any]:
    """Mean accuracy of linear probes on `draws` random subsets of the labelled training videos.

    Each subset has the same ratio of every class, and at least one video of it. A probe sees its
    subset alone, also where it chooses its penalty.

    Args:
        train, test: features; all test labels are known.
        ratio: ratio of the labelled training videos in a subset, in (0, 1].
        classes: number of classes.
        draws: number of subsets.
        seed: seed of the subsets.

    Returns:
        `{"videos": size of a subset, "top1", "clip_top1": means, "draws": top-1 of each subset,
        "intervals": {"top1": (low, high), "clip_top1"}}`, see `proportion_interval`.
    """
    chosen = [draw_videos(train.labels, ratio, seed=seed, draw=draw) for draw in range(draws)]
    correct = []
    for rows in chosen:
        few = Features(*(part[rows] for part in train.parts))
        probe = fit_linear_probe(few, classes=classes, seed=seed)
        correct.append(correct_predictions(probe.logits(test.values), test.labels))
    # [draws, n] of the test videos and, within each, of its clips.
    videos, clips = (
        torch.stack([part.double() for part in each]) for each in zip(*correct, strict=True)
    )
    found = {"top1": videos.mean(dim=0), "clip_top1": clips.mean(dim=0)}
    return {
        "videos": len(chosen[0]),
        **{key: float(ratios.mean()) for key, ratios in found.items()},
        "draws": videos.mean(dim=1).tolist(),
        "intervals": {key: proportion_interval(each, seed=seed) for key, each in found.items()},
    }


def draw_videos(labels: Tensor, ratio: float, *, seed: int, draw: int) -> Tensor:
    """A random subset: `ratio` of the labelled videos of every class, and at least one of each.

    Args:
        labels: int64 `[V]`; -1 is unlabelled.
        ratio: in (0, 1].
        seed: the run's seed.
        draw: number of the subset.

    Returns:
        Rows of `labels`, int64, ascending.
    """
    rng = numpy_generator(seed, draw, "low shot")
    kept = []
    for label in labels[labels >= 0].unique().tolist():
        rows = (labels == label).nonzero()[:, 0]
        order = torch.from_numpy(rng.permutation(len(rows)))
        kept.append(rows[order[: max(1, round(ratio * len(rows)))]])
    return torch.cat(kept).sort().values


# ----------------------------------------------------------------------
# Attentive probe: cross-attention with one learned query over the tokens of a frozen encoder.
#
# Bardes et al., "Revisiting Feature Prediction for Learning Visual Representations from Video"
# (V-JEPA), TMLR 2024: mean pooling hides much of the information in the tokens of masked models.

# All pairs of a rate and a decay learn side by side; held-out groups choose one.
RATES = (3e-4, 1e-3, 3e-3)
DECAYS = (0.01, 0.3)
BATCH, HEAD_DIM = 64, 64


class PooledTokens(nn.Module):
    """An encoder's tokens, pooled to at most `most` and flattened to one vector per clip.

    Args:
        encoder: its `tokens` are `[N, L, C]`.
        most: largest number of tokens; if there are more, neighbours in the clip are averaged.
    """

    def __init__(self, encoder: Encoder, *, most: int) -> None:
        super().__init__()
        self.encoder, self.most = encoder, most

    def forward(self, clips: Tensor) -> Tensor:
        """`[N, l * C]`, l at most `most`."""
        tokens = self.encoder.tokens(clips).transpose(1, 2)  # [N, C, L]
        if tokens.shape[2] > self.most:
            tokens = F.adaptive_avg_pool1d(tokens, self.most)
        return tokens.transpose(1, 2).flatten(1)


class AttentivePool(nn.Module):
    """One learned query over the tokens of a clip, and a linear layer: `[N, L, C]` to logits."""

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.query = nn.Parameter(torch.randn(1, 1, dim) * 0.02)
        self.attention = nn.MultiheadAttention(dim, max(1, dim // HEAD_DIM), batch_first=True)
        self.head = nn.Linear(dim, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits `[N, classes]`."""
        normed = self.norm(tokens)
        query = self.query.expand(len(tokens), -1, -1)
        pooled, _ = self.attention(query, normed, normed, need_weights=False)
        logits: Tensor = self.head(pooled[:, 0])
        return logits


@dataclass(frozen=True)
class AttentiveProbe:
    """A fitted attentive probe, its settings and their held-out accuracy (NaN if there is none)."""

    pool: AttentivePool
    learning_rate: float
    weight_decay: float
    held_out_top1: float

    @torch.no_grad()
    def logits(self, values: Tensor) -> Tensor:
        """Logits `[n, V, classes]` of pooled tokens `[n, V, L * C]`."""
        tokens = values.flatten(0, 1).unflatten(1, (-1, self.pool.query.shape[2]))
        logits = torch.cat([self.pool(block) for block in tokens.split(1024)])
        return logits.unflatten(0, values.shape[:2])


def fit_attentive_probe(
    train: Features, *, dim: int, classes: int, epochs: int, seed: int
) -> AttentiveProbe:
    """Fit an attentive probe on every view of the labelled training videos.

    Probes of all learning rates and weight decays are trained side by side on the same batches.
    The best one on a held-out fifth of the sources is trained again on all videos.

    Args:
        train: pooled tokens `[n, V, L * C]`.
        dim: C.
        classes: number of classes.
        epochs: passes over the training clips.
        seed: seed of the held-out fold, the initial weights and the order of the clips.
    """
    labelled = train.labels >= 0
    values, labels = train.values[labelled], train.labels[labelled]
    sources = sources_of(train.groups[labelled], train.indices[labelled])
    settings = [(rate, decay) for rate in RATES for decay in DECAYS]
    chosen, held_out = settings[len(settings) // 2], float("nan")
    if can_hold_out(sources, labels):
        held = folds_of(sources, seed=seed) == 0
        pools = fit_attentive_pools(
            *(values[~held], labels[~held], settings), dim, classes, epochs=epochs, seed=seed
        )
        probes = [AttentiveProbe(pool, 0, 0, 0) for pool in pools]
        correct = [
            (each.logits(values[held]).argmax(dim=2) == labels[held, None]).float().mean()
            for each in probes
        ]
        best = int(torch.stack(correct).argmax())
        chosen, held_out = settings[best], float(correct[best])
    (pool,) = fit_attentive_pools(values, labels, [chosen], dim, classes, epochs=epochs, seed=seed)
    return AttentiveProbe(pool, *chosen, held_out)


def fit_attentive_pools(
    values: Tensor,
    labels: Tensor,
    settings: Sequence[tuple[float, float]],
    dim: int,
    classes: int,
    *,
    epochs: int,
    seed: int,
) -> list[AttentivePool]:
    """One pool for each (rate, decay), with the same initial weights and the same batches."""
    rows = values.flatten(0, 1).unflatten(1, (-1, dim))  # [n * V, L, C]
    targets = labels.repeat_interleave(values.shape[1])
    # Layers draw their weights from the global generator, which must not change for the caller.
    with torch.random.fork_rng():
        torch.manual_seed(seed_of(seed, "attentive probe"))
        first = AttentivePool(dim, classes)
    # One optimiser serves all pools. Their losses are summed, but share no parameter.
    pools = [AttentivePool(dim, classes) for _ in settings]
    for pool in pools:
        pool.load_state_dict(first.state_dict())
    optimiser = torch.optim.AdamW(
        [
            {"params": pool.parameters(), "lr": rate, "weight_decay": decay}
            for pool, (rate, decay) in zip(pools, settings, strict=True)
        ]
    )
    steps = -(-len(rows) // BATCH) * epochs
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=steps)
    for epoch in range(epochs):
        order = numpy_generator(seed, epoch, "attentive probe").permutation(len(rows))
        for batch in torch.from_numpy(order).split(BATCH):
            losses = [F.cross_entropy(pool(rows[batch]), targets[batch]) for pool in pools]
            optimiser.zero_grad()
            torch.stack(losses).sum().backward()
            optimiser.step()
            schedule.step()
    return [pool.eval() for pool in pools]
