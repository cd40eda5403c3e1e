"""Free adversarial training: the backward pass that moves the weights moves the perturbation too.

Shafahi et al., "Adversarial Training for Free!", NeurIPS 2019: each batch is replayed, and each
replay takes a step of the weights and a step of the perturbation. There, the perturbation of one
batch is the start of the next one's; here each batch begins at random, so that a resumed run
needs none of the last batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch.nn.functional as F
from torch import Tensor, nn

from vidcsl.objectives.adversarial.inner import attack_seeds
from vidcsl.objectives.losses import at_least_float32
from vidcsl.objectives.method import ClipBatch
from vidcsl.objectives.metrics import Metric
from vidcsl.objectives.supervised import Supervised


class FreeAttack(Protocol):
    """A perturbation that climbs by gradients which it is given."""

    def start(self, clips: Tensor, *, seeds: Sequence[int], progress: float) -> Tensor:
        """A random delta."""

    def climbed(
        self,
        clips: Tensor,
        delta: Tensor,
        gradient: Tensor,
        *,
        seeds: Sequence[int],
        progress: float,
    ) -> Tensor:
        """Delta after a step along the gradient."""


class FreeTraining(Supervised):
    """Cross-entropy on clips whose perturbation climbs from replay to replay.

    Args:
        encoder, options: see `Supervised`.
        attack: see `FreeAttack`.
        replays: steps with each batch.
        seed: of the random starts.
    """

    def __init__(
        self,
        encoder: nn.Module,
        *,
        attack: FreeAttack,
        replays: int = 4,
        seed: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(encoder, **options)
        self.attack, self.replays, self.seed = attack, replays, seed
        self._now: _Perturbation | None = None

    def forward(self, batch: ClipBatch) -> dict[str, Metric]:
        """Mean cross-entropy and accuracy over all views, as far as they are perturbed."""
        shape = batch.clips.shape[:2]
        if batch.replay == 0 or self._now is None:
            self._now = self._fresh(batch)
        now = self._now
        now.delta = now.delta.detach().requires_grad_(True)
        labels = batch.labels.repeat_interleave(shape[1])
        features = self.encoder((now.clips + now.delta).clamp(0, 1))
        units = F.normalize(at_least_float32(features.detach()), dim=1)
        described = self.describe(units.unflatten(0, shape), batch)
        logits = at_least_float32(self.head(features))
        loss = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        accuracy = (logits.argmax(dim=1) == labels).float().mean()
        return {"loss": loss, "train_accuracy": accuracy, **described}

    def after_step(self, progress: float) -> None:
        """Let the perturbation climb."""
        now = self._now
        if now is not None and now.delta.grad is not None:
            now.delta = self.attack.climbed(
                now.clips, now.delta.detach(), now.delta.grad, seeds=now.seeds, progress=progress
            )

    def _fresh(self, batch: ClipBatch) -> "_Perturbation":
        clips = batch.clips.flatten(0, 1)
        seeds = attack_seeds(batch, views=batch.clips.shape[1], seed=self.seed)
        delta = self.attack.start(clips, seeds=seeds, progress=batch.progress)
        return _Perturbation(clips, delta, seeds)


@dataclass
class _Perturbation:
    """Clips `[N, ...]`, their perturbation and their seeds."""

    clips: Tensor
    delta: Tensor
    seeds: list[int]
