"""TRADES: cross-entropy on clean clips, and perturbed ones are to be named as these are.

Zhang et al., "Theoretically Principled Trade-off between Robustness and Accuracy", ICML 2019.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidcsl.objectives.adversarial.classifier import AdversarialClassifier
from vidcsl.objectives.adversarial.inner import in_eval
from vidcsl.objectives.losses import at_least_float32
from vidcsl.objectives.method import ClipBatch
from vidcsl.objectives.metrics import Metric


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
