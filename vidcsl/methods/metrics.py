"""What a method reports beside its loss, and the geometry of a batch among it.

Contrastive learning spreads the videos of a class evenly over the sphere, supervised learning
gathers them so that classes stand apart. That is how the paper explains fragility; here it is in
numbers.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vidcsl.methods.losses import at_least_float32

MOST_ROWS = 1024  # of a batch that are described: enough for a mean, and cheap


@dataclass(frozen=True)
class Ratio:
    """`part / whole`, both summed over steps and processes before the division.

    A mean of ratios would weigh small batches as much as large ones.

    Args:
        part, whole: scalars, or `[classes + 1]` with one entry for each class of anchors and a last
            one for the unlabelled.
    """

    part: Tensor
    whole: Tensor


Metric = Tensor | Ratio
"""A scalar, to be averaged over steps and processes, or a ratio."""


@torch.no_grad()
def describe_batch(embeddings: Tensor, labels: Tensor) -> dict[str, Metric]:
    """Alignment, uniformity, effective rank, class similarities and margin of one step.

    Args:
        embeddings: unit `[B, V, P]`, of all processes.
        labels: int64 `[B]`, -1 where unknown.
    """
    views, labels = at_least_float32(embeddings[:MOST_ROWS].detach()), labels[:MOST_ROWS]
    described: dict[str, Metric] = {}
    if len(views) > 1:
        first = views[:, 0]
        described["uniformity"] = uniformity(first)
        described["effective_rank"] = effective_rank(first)
        similarities = first @ first.T
        known = (labels[:, None] >= 0) & (labels[None, :] >= 0)
        pair = torch.ones_like(known).triu(diagonal=1) & known  # each once, none with itself
        same = labels[:, None] == labels[None, :]
        for name, chosen in (("same_class", same & pair), ("other_class", ~same & pair)):
            total = torch.where(chosen, similarities, 0.0).sum()
            described[f"{name}_similarity"] = Ratio(total, chosen.sum())
        # An own label for each unlabelled video: it has no margin then and is no other's class.
        own = -1 - torch.arange(len(labels), device=labels.device)
        margins = class_margins(first, torch.where(labels < 0, own, labels))
        described["margin"] = Ratio(margins.nan_to_num().sum(), (~margins.isnan()).sum())
    if views.shape[1] > 1:
        described["alignment"] = alignment(views[:, 0], views[:, 1])
    return described


def alignment(embeddings: Tensor, others: Tensor) -> Tensor:
    """Mean squared distance of positive pairs, both `[N, P]` of unit length.

    Wang & Isola, "Understanding Contrastive Representation Learning through Alignment and
    Uniformity on the Hypersphere", ICML 2020 (alpha = 2).
    """
    return (embeddings - others).square().sum(dim=1).mean()


def uniformity(embeddings: Tensor) -> Tensor:
    """Log of the mean Gaussian potential over all pairs of `[N, P]` unit vectors, N >= 2 (t = 2).

    0 when all coincide, about -4 when spread evenly over a sphere of many dimensions.
    Wang & Isola, ICML 2020.
    """
    return torch.pdist(at_least_float32(embeddings)).square().mul(-2).exp().mean().log()


def effective_rank(vectors: Tensor) -> Tensor:
    """Exponential of the entropy of the covariance's spectrum, from 1 to P, of `[N, P]`.

    Roy & Vetterli, "The effective rank", EUSIPCO 2007.
    """
    centred = at_least_float32(vectors - vectors.mean(dim=0))
    if len(centred) < centred.shape[1]:
        centred = centred.T  # the same spectrum from the smaller product
    spectrum = torch.linalg.eigvalsh(centred.T @ centred).clamp(min=0)
    energy = spectrum / spectrum.sum().clamp(min=1e-12)
    return torch.special.entr(energy).sum().exp()


def class_margins(vectors: Tensor, labels: Tensor) -> Tensor:
    """How much nearer each vector is to the centre of its class than to any other's, `[N]`.

    The difference of two cosines, in [-2, 2]; below 0 the vector lies nearer another class. NaN
    where its class has no other member, or there is no other class.

    Args:
        vectors: unit `[N, P]`.
        labels: int64 `[N]`, none of them unknown.
    """
    _, place = labels.unique(return_inverse=True)
    sums = vectors.new_zeros(int(place.max()) + 1, vectors.shape[1]).index_add(0, place, vectors)
    cosines = vectors @ F.normalize(sums, dim=1).T
    others = cosines.scatter(1, place[:, None], -torch.inf).amax(dim=1)
    # The centre of its own class is taken without it, or a small class would flatter its members.
    own = (vectors * F.normalize(sums[place] - vectors, dim=1)).sum(dim=1)
    alone = place.bincount()[place] < 2
    return torch.where(alone | others.isinf(), torch.nan, own - others)
