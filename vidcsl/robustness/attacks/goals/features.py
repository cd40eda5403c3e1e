"""Goals on features: no labels needed, and nothing but an encoder."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vidcsl.errors import UserError


@dataclass(frozen=True)
class FeatureDistance:
    """Away from the clean features, by cosine distance.

    Its gradient vanishes at the clean clip, where it is least: start at random.
    """

    def prepare(self, clean: Callable[[], Tensor], _labels: Tensor) -> Tensor:
        """Clean features [N, D], of unit length."""
        return F.normalize(clean(), dim=1)

    def value(self, outputs: Tensor, _labels: Tensor, reference: Tensor) -> Tensor:
        """One minus the cosine, [N]."""
        return 1 - (F.normalize(outputs, dim=1) * reference).sum(dim=1)

    def reached(self, _outputs: Tensor, labels: Tensor, _reference: Tensor) -> Tensor:
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
                f"a gallery {list(self.gallery.shape)} has no {self.k} neighbours on either side"
            )
        if self.classes is not None and self.classes.shape != self.gallery.shape[:1]:
            raise UserError(f"a gallery of {len(self.gallery)} needs as many classes")

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

    def value(self, outputs: Tensor, _labels: Tensor, reference: Tensor) -> Tensor:
        """By how much the others are nearer, [N]."""
        similarities = self._similarities(outputs)
        return self._nearest(similarities, reference) - self._nearest(similarities, ~reference)

    def reached(self, outputs: Tensor, labels: Tensor, reference: Tensor) -> Tensor:
        """The others are nearer."""
        return self.value(outputs, labels, reference) > 0

    def _similarities(self, features: Tensor) -> Tensor:
        gallery = F.normalize(self.gallery.to(features), dim=1)
        return F.normalize(features, dim=1) @ gallery.T

    def _nearest(self, similarities: Tensor, hidden: Tensor) -> Tensor:
        return similarities.masked_fill(hidden, -torch.inf).topk(self.k, dim=1).values.mean(dim=1)


@dataclass(frozen=True, eq=False)
class ContrastiveLoss:
    """The NT-Xent loss of each clip against fixed candidates; its positive is number `label`.

    The candidates are embeddings of other views, clip i's own among them at `labels[i]`: in
    adversarial pretraining, of the batch's second views, with labels 0 .. N-1.

    Args:
        candidates: embeddings [M, P].
        temperature: divides the cosine similarities.
        ignored: bool [N, M], candidates that are no negatives of a clip (false negatives, say).
    """

    candidates: Tensor
    temperature: float = 0.1
    ignored: Tensor | None = None

    def prepare(self, _clean: Callable[[], Tensor], labels: Tensor) -> Tensor:
        """Bool [N, M]: what is no negative of a clip, its positive aside."""
        shape = (len(labels), len(self.candidates))
        if ((labels < 0) | (labels >= shape[1])).any():
            raise UserError(f"labels must be positions of {shape[1]} candidates")
        if self.ignored is None:
            return torch.zeros(shape, dtype=torch.bool, device=labels.device)
        if self.ignored.shape != shape:
            raise UserError(f"ignored must be {list(shape)}, not {list(self.ignored.shape)}")
        return self.ignored.to(labels.device).scatter(1, labels.unsqueeze(1), False)

    def value(self, outputs: Tensor, labels: Tensor, reference: Tensor) -> Tensor:
        """The loss, [N]."""
        return F.cross_entropy(self._logits(outputs, reference), labels, reduction="none")

    def reached(self, outputs: Tensor, labels: Tensor, reference: Tensor) -> Tensor:
        """A negative is nearer than the positive."""
        return self._logits(outputs, reference).argmax(dim=1) != labels

    def _logits(self, outputs: Tensor, ignored: Tensor) -> Tensor:
        candidates = F.normalize(self.candidates.to(outputs), dim=1)
        similarities = F.normalize(outputs, dim=1) @ candidates.T
        return (similarities / self.temperature).masked_fill(ignored, -torch.inf)
