"""Attentive probe: what a frozen encoder's tokens tell where one learns which of them to look at.

Bardes et al., "Revisiting Feature Prediction for Learning Visual Representations from Video"
(V-JEPA), TMLR 2024: mean pooling hides what the tokens of masked models know.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidcsl.evaluation.features import Features
from vidcsl.evaluation.linear import can_hold_out, folds_of, sources_of
from vidcsl.models.encoder import Encoder
from vidcsl.seeding import numpy_generator, seed_of

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
        pools = _fit(
            *(values[~held], labels[~held], settings), dim, classes, epochs=epochs, seed=seed
        )
        probes = [AttentiveProbe(pool, 0, 0, 0) for pool in pools]
        right = [
            (each.logits(values[held]).argmax(dim=2) == labels[held, None]).float().mean()
            for each in probes
        ]
        best = int(torch.stack(right).argmax())
        chosen, held_out = settings[best], float(right[best])
    (pool,) = _fit(values, labels, [chosen], dim, classes, epochs=epochs, seed=seed)
    return AttentiveProbe(pool, *chosen, held_out)


def _fit(
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
