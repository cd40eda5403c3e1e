"""Goals on logits: leave the true class, or reach another."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vidcsl.errors import UserError


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


def dlr(logits: Tensor, labels: Tensor) -> Tensor:
    """The margin in units of the largest minus the third logit (Croce & Hein 2020): no scale.

    Logits [N, K >= 3], labels [N] -> [N].
    """
    top = _top(logits, 3, "dlr")
    return margin(logits, labels) / (top[:, 0] - top[:, 2] + 1e-12)


def hinge(logits: Tensor, labels: Tensor) -> Tensor:
    """The margin up to 0.05, quadratic near it: no more than success (Pony et al. 2021).

    Logits [N, K], labels [N] -> [N].
    """
    confidence = 0.05
    left = (confidence - margin(logits, labels)).clamp_min(0)
    return -torch.minimum(left.square() / confidence, left)


def targeted_cross_entropy(logits: Tensor, _labels: Tensor, targets: Tensor) -> Tensor:
    """Log-probability of the target. Logits [N, K], targets [N] -> [N]."""
    return -F.cross_entropy(logits, targets, reduction="none")


def targeted_margin(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Logit of the target minus the true one. Logits [N, K], labels, targets [N] -> [N]."""
    return (_of(logits, targets) - _of(logits, labels)).squeeze(1)


def targeted_dlr(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """The targeted margin in units that no rescaling changes (Croce & Hein 2020).

    Logits [N, K >= 4], labels, targets [N] -> [N].
    """
    top = _top(logits, 4, "targeted_dlr")
    scale = top[:, 0] - (top[:, 2] + top[:, 3]) / 2
    return targeted_margin(logits, labels, targets) / (scale + 1e-12)


@dataclass(frozen=True)
class Untargeted:
    """Any class but the label.

    Args:
        function: (logits [N, K], labels [N]) -> [N].
        classes: the least K that it is defined for.
    """

    function: Callable[[Tensor, Tensor], Tensor]
    classes: int = 2

    def prepare(self, _clean: Callable[[], Tensor], labels: Tensor) -> Tensor:
        """Nothing but the labels."""
        return labels

    def value(self, outputs: Tensor, labels: Tensor, _reference: Tensor) -> Tensor:
        """The function."""
        return self.function(_check_classes(outputs, labels), labels)

    def reached(self, outputs: Tensor, labels: Tensor, _reference: Tensor) -> Tensor:
        """Misclassified."""
        return outputs.argmax(dim=1) != labels


@dataclass(frozen=True)
class Targeted:
    """One other class.

    Args:
        function: (logits [N, K], labels [N], targets [N]) -> [N].
        rank: the target is the clean clip's most probable other class (1), the next (2), ...
        targets: classes [N] of your choice instead; misclassification alone is then not enough.
        classes: the least K that the function is defined for.
    """

    function: Callable[[Tensor, Tensor, Tensor], Tensor]
    rank: int = 1
    targets: Tensor | None = None
    classes: int = 2

    def prepare(self, clean: Callable[[], Tensor], labels: Tensor) -> Tensor:
        """The targets."""
        if self.targets is not None:
            return self._given(self.targets.to(labels), labels)
        logits = _check_classes(clean(), labels)
        if not 1 <= self.rank < logits.shape[1]:
            raise UserError(f"a model of {logits.shape[1]} classes has no {self.rank}. other class")
        others = logits.scatter(1, labels.unsqueeze(1), -torch.inf)
        return others.argsort(dim=1, descending=True)[:, self.rank - 1]

    def _given(self, targets: Tensor, labels: Tensor) -> Tensor:
        if targets.shape != labels.shape or (targets < 0).any():
            raise UserError(f"{len(labels)} clips need as many targets, classes from 0")
        return targets

    def value(self, outputs: Tensor, labels: Tensor, reference: Tensor) -> Tensor:
        """The function."""
        _check_classes(outputs, reference)
        return self.function(_check_classes(outputs, labels), labels, reference)

    def reached(self, outputs: Tensor, labels: Tensor, reference: Tensor) -> Tensor:
        """Misclassified; with targets of your choice, classified as these."""
        predictions = outputs.argmax(dim=1)
        return predictions != labels if self.targets is None else predictions == reference


def _check_classes(logits: Tensor, labels: Tensor) -> Tensor:
    classes = logits.shape[1]
    if classes < 2 or ((labels < 0) | (labels >= classes)).any():
        raise UserError(
            f"labels {labels.unique().tolist()} do not fit a model of {classes} classes"
        )
    return logits


def _of(logits: Tensor, classes: Tensor) -> Tensor:
    return logits.gather(1, classes.unsqueeze(1))


def _top(logits: Tensor, k: int, name: str) -> Tensor:
    if logits.shape[1] < k:
        raise UserError(f"the goal {name} needs {k} or more classes, not {logits.shape[1]}")
    return logits.topk(k, dim=1).values
