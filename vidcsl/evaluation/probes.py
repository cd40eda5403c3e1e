"""Probes on frozen features: linear, few labels, attentive."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidcsl.errors import UserError
from vidcsl.evaluation.features import Features
from vidcsl.evaluation.statistics import bootstrap_interval
from vidcsl.io import load_arrays, save_arrays
from vidcsl.models.encoder import Encoder
from vidcsl.seeding import numpy_generator, seed_of

# ----------------------------------------------------------------------
# Linear probe: multinomial logistic regression on frozen features.

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


# ----------------------------------------------------------------------
# How much can be learned from few labels: a linear probe on a share of the training videos.


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


# ----------------------------------------------------------------------
# Attentive probe: what a frozen encoder's tokens tell where one learns which of them to look at.
#
# Bardes et al., "Revisiting Feature Prediction for Learning Visual Representations from Video"
# (V-JEPA), TMLR 2024: mean pooling hides what the tokens of masked models know.

RATES = (3e-4, 1e-3, 3e-3)
DECAYS = (0.01, 0.3)
BATCH, HEAD_DIM = 64, 64


class PooledTokens(nn.Module):
    """An encoder's tokens as one long vector: averaged to few, neighbours in the clip together.

    Args:
        encoder: gives tokens `[N, L, C]`.
        most: how many are kept; of more, runs of neighbouring ones are averaged.
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
    """A fitted probe, and by what it was chosen."""

    pool: AttentivePool
    learning_rate: float
    weight_decay: float
    held_out_top1: float

    @torch.no_grad()
    def logits(self, values: Tensor) -> Tensor:
        """Logits `[n, V, classes]` of pooled tokens `[n, V, L * C]`."""
        tokens = _tokens(values.flatten(0, 1), self.pool)
        logits = torch.cat([self.pool(block) for block in tokens.split(1024)])
        return logits.unflatten(0, values.shape[:2])


def fit_attentive_probe(
    train: Features, *, dim: int, classes: int, epochs: int, seed: int
) -> AttentiveProbe:
    """Fit on every view of the labelled training videos.

    All rates and decays learn at once, from the same batches; the best on a fifth of the training
    *groups* that is held out learns again from all. Test data are not seen.

    Args:
        train: pooled tokens `[n, V, L * C]`.
        dim: C.
        classes: number of classes.
        epochs: passes over the training clips.
        seed: of the fold, the start and the order.
    """
    labelled = train.labels >= 0
    values, labels = train.values[labelled], train.labels[labelled]
    sources = sources_of(train.groups[labelled], train.indices[labelled])
    settings = [(rate, decay) for rate in RATES for decay in DECAYS]
    chosen, held_out = settings[len(settings) // 2], float("nan")
    if can_hold_out(sources, labels):
        held = folds_of(sources, seed=seed) == 0
        pools = _attentive_fit(
            *(values[~held], labels[~held], settings), dim, classes, epochs=epochs, seed=seed
        )
        probes = [AttentiveProbe(pool, 0, 0, 0) for pool in pools]
        right = [
            (each.logits(values[held]).argmax(dim=2) == labels[held, None]).float().mean()
            for each in probes
        ]
        best = int(torch.stack(right).argmax())
        chosen, held_out = settings[best], float(right[best])
    (pool,) = _attentive_fit(values, labels, [chosen], dim, classes, epochs=epochs, seed=seed)
    return AttentiveProbe(pool, *chosen, held_out)


def _attentive_fit(
    values: Tensor,
    labels: Tensor,
    settings: Sequence[tuple[float, float]],
    dim: int,
    classes: int,
    *,
    epochs: int,
    seed: int,
) -> list[AttentivePool]:
    """One pool for each (rate, decay), all from the same start and the same batches."""
    rows, targets = values.flatten(0, 1), labels.repeat_interleave(values.shape[1])
    with torch.random.fork_rng():
        torch.manual_seed(seed_of(seed, "attentive probe"))
        first = AttentivePool(dim, classes)
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
            tokens = _tokens(rows[batch], first)
            losses = [F.cross_entropy(pool(tokens), targets[batch]) for pool in pools]
            optimiser.zero_grad()
            torch.stack(losses).sum().backward()
            optimiser.step()
            schedule.step()
    return [pool.eval() for pool in pools]


def _tokens(rows: Tensor, pool: AttentivePool) -> Tensor:
    return rows.unflatten(1, (-1, pool.query.shape[2]))
