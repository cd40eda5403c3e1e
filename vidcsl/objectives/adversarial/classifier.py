"""What adversarially trained classifiers share: clips perturbed against the network in training."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidcsl.objectives.adversarial.budgets import Budgets
from vidcsl.objectives.adversarial.inner import Attacking, attack_seeds
from vidcsl.objectives.losses import at_least_float32
from vidcsl.objectives.method import ClipBatch
from vidcsl.objectives.metrics import Metric
from vidcsl.objectives.supervised import Supervised


class AdversarialClassifier(Attacking, Supervised):
    """A supervised method that learns from perturbed clips.

    Args:
        encoder, options: see `Supervised`.
        attack, seed: see `Attacking`.
        budgets: a budget for each video; by default all have the attack's.
    """

    def __init__(
        self,
        encoder: nn.Module,
        *,
        budgets: Budgets | None = None,
        **options: Any,
    ) -> None:
        super().__init__(encoder, **options)
        self.budgets = budgets

    def perturbed(self, clips: Tensor, batch: ClipBatch, *references: Tensor) -> Tensor:
        """Clips `[B * V, 3, T, S, S]` within the budget of each, perturbed so that `harm` rises."""
        views = len(clips) // len(batch.videos)
        seeds = attack_seeds(batch, views=views, seed=self.seed)
        network = nn.Sequential(self.encoder, self.head)
        attacked = clips.clone()
        for share, rows in self._groups(batch, views):
            known = [reference[rows] for reference in references]
            attacked[rows] = self.attack(
                network,
                clips[rows],
                lambda logits, known=known: self.harm(at_least_float32(logits), *known),  # type: ignore[misc]
                seeds=[seeds[row] for row in rows.tolist()],
                progress=batch.progress,
                share=share,
            )
        return attacked

    def harm(self, logits: Tensor, *references: Tensor) -> Tensor:
        """What the attack maximises, `[n]`, of logits `[n, classes]` and the clips' references."""
        raise NotImplementedError

    def report(self, batch: ClipBatch, features: Tensor, logits: Tensor) -> dict[str, Metric]:
        """Geometry of features `[B * V, D]` and accuracy of logits; budgets learn from these."""
        shape = batch.clips.shape[:2]
        units = F.normalize(at_least_float32(features.detach()), dim=1).unflatten(0, shape)
        described = self.describe(units, batch)
        right = logits.argmax(dim=1) == batch.labels.repeat_interleave(shape[1])
        if self.budgets is not None:
            self.budgets.learn(batch.videos, right.unflatten(0, shape).all(dim=1))
            described["budget"] = self.budgets.share(batch.videos).mean()
        return {"train_accuracy": right.float().mean(), **described}

    def _groups(self, batch: ClipBatch, views: int) -> list[tuple[float, Tensor]]:
        """Shares of the budget, and the rows that have them."""
        if self.budgets is None:
            return [(1.0, torch.arange(len(batch.videos) * views, device=batch.clips.device))]
        shares = self.budgets.share(batch.videos).repeat_interleave(views)
        return [
            (share, (shares == share).nonzero().flatten()) for share in shares.unique().tolist()
        ]
