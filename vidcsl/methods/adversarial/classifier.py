"""Adversarial training of classifiers: PGD-AT and TRADES."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidcsl.methods.adversarial.inner import Attacking, Budgets, attack_seeds, in_eval
from vidcsl.methods.losses import at_least_float32
from vidcsl.methods.method import ClipBatch, Metric
from vidcsl.methods.supervised import Supervised

# ----------------------------------------------------------------------
# What adversarially trained classifiers share: clips perturbed against the network in training.


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


# ----------------------------------------------------------------------
# Adversarial training: cross-entropy on perturbed clips.
#
# Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks", ICLR 2018. Fast AT
# (Wong et al., ICLR 2020) is the same with one step of 1.25 eps; Free AT (Shafahi et al., NeurIPS
# 2019) is the same with a perturbation that climbs from replay to replay.


class AdversarialTraining(AdversarialClassifier):
    """Minimises the cross-entropy that the attack maximises."""

    def forward(self, batch: ClipBatch) -> dict[str, Metric]:
        """Mean cross-entropy and accuracy over all views under attack."""
        clips = batch.clips.flatten(0, 1)
        labels = batch.labels.repeat_interleave(batch.clips.shape[1])
        features = self.encoder(self.perturbed(clips, batch, labels))
        logits = at_least_float32(self.head(features))
        loss = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        return {"loss": loss, **self.report(batch, features, logits)}

    def harm(self, logits: Tensor, *references: Tensor) -> Tensor:
        """Cross-entropy."""
        return F.cross_entropy(logits, references[0], reduction="none")


# ----------------------------------------------------------------------
# TRADES: cross-entropy on clean clips, and perturbed ones are to be named as these are.
#
# Zhang et al., "Theoretically Principled Trade-off between Robustness and Accuracy", ICML 2019.


class Trades(AdversarialClassifier):
    """L = CE(f(x), y) + beta KL(f(x) || f(x + delta)), where delta maximises the divergence.

    Args:
        encoder, options: see `AdversarialClassifier`.
        beta: weight of the divergence.
    """

    def __init__(self, encoder: nn.Module, *, beta: float = 6.0, **options: Any) -> None:
        super().__init__(encoder, **options)
        self.beta = beta

    def forward(self, batch: ClipBatch) -> dict[str, Metric]:
        """Both terms over all views, and the accuracy on perturbed clips."""
        clips = batch.clips.flatten(0, 1)
        labels = batch.labels.repeat_interleave(batch.clips.shape[1])
        with torch.no_grad(), in_eval(self.encoder):
            wanted = at_least_float32(self.head(self.encoder(clips))).log_softmax(dim=1)
        attacked = self.perturbed(clips, batch, wanted)
        features = self.encoder(clips)
        logits = at_least_float32(self.head(features))
        moved = at_least_float32(self.head(self.encoder(attacked)))
        natural = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        robust = _divergence(logits.log_softmax(dim=1), moved).mean()
        return {
            "loss": natural + self.beta * robust,
            "divergence": robust.detach(),
            **self.report(batch, features, moved),
        }

    def harm(self, logits: Tensor, *references: Tensor) -> Tensor:
        """The divergence from what the clean clips were taken for."""
        return _divergence(references[0], logits)


def _divergence(wanted: Tensor, logits: Tensor) -> Tensor:
    """KL(p || q) `[N]` of log p `[N, K]` and the logits of q."""
    return F.kl_div(logits.log_softmax(dim=1), wanted, reduction="none", log_target=True).sum(dim=1)
