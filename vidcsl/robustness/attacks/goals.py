"""Goals: what an attack maximises, a number for each clip from its logits and its label."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Goal = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of the true class. Logits [N, K], labels [N] -> [N]."""
    return F.cross_entropy(logits, labels, reduction="none")


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Largest other logit minus the true one: positive where misclassified (Carlini & Wagner 2017).

    Unlike cross-entropy, its gradient does not vanish where the model is confident.
    Logits [N, K], labels [N] -> [N].
    """
    true = labels.unsqueeze(1)
    others = logits.scatter(1, true, -torch.inf)
    return others.amax(dim=1) - logits.gather(1, true).squeeze(1)


GOALS: dict[str, Goal] = {"cross_entropy": cross_entropy, "margin": margin}
