"""What an attack maximises: a number for each clip, and when it is done with a clip."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from vidcsl.errors import UserError

Function = Callable[[Tensor, Tensor], Tensor]
"""`(logits [N, K], labels [N]) -> [N]`."""


class Goal(Protocol):
    """A number for each clip from what the model puts out for it: logits, features, embeddings.

    Outputs are `[N, K]` or `[N, D]`, float32 or float64. A reference `[N, ...]` is what the goal
    keeps of each clip from the outset: its target class, its clean features.
    """

    def prepare(self, clean: Callable[[], Tensor], labels: Tensor) -> Tensor:
        """The reference, where wanted from the outputs at the clean clips, `clean()`."""

    def value(self, outputs: Tensor, labels: Tensor, reference: Tensor) -> Tensor:
        """What is maximised, `[N]`."""

    def reached(self, outputs: Tensor, labels: Tensor, reference: Tensor) -> Tensor:
        """Bool `[N]`: the clips that need no further attack."""


@dataclass(frozen=True)
class Untargeted:
    """Any class but the label.

    Args:
        function: (logits [N, K], labels [N]) -> [N].
        classes: the least K that it is defined for.
    """

    function: Function
    classes: int = 2

    def prepare(self, clean: Callable[[], Tensor], labels: Tensor) -> Tensor:
        """Nothing but the labels."""
        return labels

    def value(self, outputs: Tensor, labels: Tensor, reference: Tensor) -> Tensor:
        """The function."""
        return self.function(_check_classes(outputs, labels), labels)

    def reached(self, outputs: Tensor, labels: Tensor, reference: Tensor) -> Tensor:
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
            targets = self.targets.to(labels)
            if targets.shape != labels.shape or (targets < 0).any():
                raise UserError(f"{len(labels)} clips need as many targets, classes from 0")
            return targets
        logits = _check_classes(clean(), labels)
        if not 1 <= self.rank < logits.shape[1]:
            raise UserError(
                f"rank {self.rank}: a model of {logits.shape[1]} classes has ranks from 1 to "
                f"{logits.shape[1] - 1}"
            )
        others = logits.scatter(1, labels.unsqueeze(1), -torch.inf)
        return others.argsort(dim=1, descending=True)[:, self.rank - 1]

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
    if classes == 1:
        raise UserError(
            "a model of one class cannot be fooled: pad its logit to two, "
            "`lambda clips: F.pad(model(clips), (1, 0))`"
        )
    if ((labels < 0) | (labels >= classes)).any():
        raise UserError(
            f"labels {labels.unique().tolist()} do not fit a model of {classes} classes"
        )
    return logits


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
    top = _largest(logits, 3, "dlr")
    # The authors' constant: three equal logits would divide by zero.
    return margin(logits, labels) / (top[:, 0] - top[:, 2] + 1e-12)


def hinge(logits: Tensor, labels: Tensor) -> Tensor:
    """The margin up to 0.05, quadratic near it: no more than success (Pony et al. 2021).

    Logits [N, K], labels [N] -> [N].
    """
    confidence = 0.05
    # Quadratic at the end, so that steps shrink there instead of overshooting.
    left = (confidence - margin(logits, labels)).clamp_min(0)
    return -torch.minimum(left.square() / confidence, left)


def targeted_cross_entropy(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:  # noqa: ARG001
    """Log-probability of the target. Logits [N, K], targets [N] -> [N]."""
    return -F.cross_entropy(logits, targets, reduction="none")


def targeted_margin(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Logit of the target minus the true one. Logits [N, K], labels, targets [N] -> [N]."""
    target, true = (logits.gather(1, each.unsqueeze(1)) for each in (targets, labels))
    return (target - true).squeeze(1)


def targeted_dlr(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """The targeted margin in units that no rescaling changes (Croce & Hein 2020).

    Logits [N, K >= 4], labels, targets [N] -> [N].
    """
    top = _largest(logits, 4, "targeted_dlr")
    scale = top[:, 0] - (top[:, 2] + top[:, 3]) / 2
    return targeted_margin(logits, labels, targets) / (scale + 1e-12)


def _largest(logits: Tensor, k: int, name: str) -> Tensor:
    if logits.shape[1] < k:
        raise UserError(f"the goal {name} needs {k} or more classes, not {logits.shape[1]}")
    return logits.topk(k, dim=1).values


@dataclass(frozen=True)
class FeatureDistance:
    """Away from the clean features, by cosine distance: no labels, nothing but an encoder.

    Its gradient vanishes at the clean clip, where it is least: start at random.
    """

    def prepare(self, clean: Callable[[], Tensor], labels: Tensor) -> Tensor:
        """Clean features [N, D], of unit length."""
        return F.normalize(clean(), dim=1)

    def value(self, outputs: Tensor, labels: Tensor, reference: Tensor) -> Tensor:
        """One minus the cosine, [N]."""
        return 1 - (F.normalize(outputs, dim=1) * reference).sum(dim=1)

    def reached(self, outputs: Tensor, labels: Tensor, reference: Tensor) -> Tensor:
        """Never: farther is better."""
        return torch.zeros_like(labels, dtype=torch.bool)


@dataclass(frozen=True, eq=False)
class NeighbourSwitch:
    """Other neighbours than before: attacks nearest-neighbour classification and retrieval.

    A clip's own are the gallery's videos of its class or, where no classes are given, its `k`
    nearest when clean. Maximised is the mean similarity to the `k` nearest of the others minus that
    to the `k` nearest of its own.

    Args:
        gallery: features [M, D] to search in.
        classes: their classes [M]; None: label-free.
        k: neighbours.
    """

    gallery: Tensor
    classes: Tensor | None = None
    k: int = 1

    def __post_init__(self) -> None:
        if self.gallery.ndim != 2 or not 1 <= self.k <= len(self.gallery) // 2:
            raise UserError(
                f"k = {self.k} needs a gallery of 2 x {self.k} rows or more, not "
                f"{list(self.gallery.shape)}"
            )
        if self.classes is not None and self.classes.shape != self.gallery.shape[:1]:
            raise UserError(
                f"a gallery of {len(self.gallery)} needs as many classes, one for each row, not "
                f"{list(self.classes.shape)}"
            )

    def prepare(self, clean: Callable[[], Tensor], labels: Tensor) -> Tensor:
        """Bool [N, M]: which of the gallery are a clip's own."""
        if self.classes is not None:
            own = labels.unsqueeze(1) == self.classes.to(labels).unsqueeze(0)
            enough = (own.sum(1) >= self.k) & ((~own).sum(1) >= self.k)
            if not enough.all():
                raise UserError(f"each class, and the rest, needs {self.k} videos in the gallery")
            return own
        similarities = self._similarities(clean())
        nearest = similarities.topk(self.k, dim=1).indices
        return torch.zeros_like(similarities, dtype=torch.bool).scatter(1, nearest, True)

    def value(self, outputs: Tensor, labels: Tensor, reference: Tensor) -> Tensor:
        """By how much the others are nearer, [N]."""
        similarities = self._similarities(outputs)
        # The mean of k rather than the nearest alone: its gradient does not jump between videos.
        others, own = (
            similarities.masked_fill(hidden, -torch.inf).topk(self.k, dim=1).values.mean(dim=1)
            for hidden in (reference, ~reference)
        )
        return others - own

    def reached(self, outputs: Tensor, labels: Tensor, reference: Tensor) -> Tensor:
        """The others are nearer."""
        return self.value(outputs, labels, reference) > 0

    def _similarities(self, features: Tensor) -> Tensor:
        gallery = F.normalize(self.gallery.to(features), dim=1)
        return F.normalize(features, dim=1) @ gallery.T


GOALS: dict[str, Goal] = {
    "cross_entropy": Untargeted(cross_entropy),
    "margin": Untargeted(margin),
    "dlr": Untargeted(dlr, classes=3),
    "hinge": Untargeted(hinge),
    "targeted_cross_entropy": Targeted(targeted_cross_entropy),
    "targeted_margin": Targeted(targeted_margin),
    "targeted_dlr": Targeted(targeted_dlr, classes=4),
    "feature_distance": FeatureDistance(),
}
"""The goals that need nothing but the model, by the name that a spec string gives them."""


def goal_of(goal: str | Goal | Function) -> Goal:
    """A goal by its name, by a function (logits [N, K], labels [N]) -> [N], or itself."""
    if isinstance(goal, str):
        if goal not in GOALS:
            raise UserError(f"unknown attack goal {goal!r}: choose from {', '.join(sorted(GOALS))}")
        return GOALS[goal]
    return cast(Goal, goal) if hasattr(goal, "prepare") else Untargeted(goal)
