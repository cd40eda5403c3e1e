"""How unit embeddings lie on the sphere: the paper's explanation of fragility, in numbers.

Contrastive learning spreads the videos of a class evenly over the sphere; supervised learning
gathers them, so that classes stand apart.
"""

import torch
from torch import Tensor

from vidcsl.objectives.losses import alignment, at_least_float32, uniformity
from vidcsl.objectives.metrics import Metric, Share

MOST_ROWS = 1024  # of a batch that are described: enough for a mean, and cheap


def effective_rank(vectors: Tensor) -> Tensor:
    """Exponential of the entropy of the covariance's spectrum, from 1 to P, of `[N, P]`.

    Roy & Vetterli, "The effective rank", EUSIPCO 2007.
    """
    centred = at_least_float32(vectors - vectors.mean(dim=0))
    if len(centred) < centred.shape[1]:
        centred = centred.T  # the same spectrum from the smaller product
    spectrum = torch.linalg.eigvalsh(centred.T @ centred).clamp(min=0)
    share = spectrum / spectrum.sum().clamp(min=1e-12)
    return torch.special.entr(share).sum().exp()


def class_margins(vectors: Tensor, labels: Tensor) -> Tensor:
    """How much nearer each vector is to the centre of its class than to any other's, `[N]`.

    The difference of two cosines, in [-2, 2]; below 0 the vector lies nearer another class. Its own
    centre is taken without it. NaN where its class has no other member, or there is no other class.

    Args:
        vectors: unit `[N, P]`.
        labels: int64 `[N]`, none of them unknown.
    """
    _, place = labels.unique(return_inverse=True)
    sums = vectors.new_zeros(int(place.max()) + 1, vectors.shape[1]).index_add(0, place, vectors)
    centres = torch.nn.functional.normalize(sums, dim=1)
    cosines = vectors @ centres.T
    others = cosines.scatter(1, place[:, None], -torch.inf).amax(dim=1)
    without = sums[place] - vectors
    alone = place.bincount()[place] < 2
    own = (vectors * torch.nn.functional.normalize(without, dim=1)).sum(dim=1)
    undefined = alone | others.isinf()
    return torch.where(undefined, torch.nan, own - others)


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
        described |= _describe_classes(first, labels)
    if views.shape[1] > 1:
        described["alignment"] = alignment(views[:, 0], views[:, 1])
    return described


def _describe_classes(vectors: Tensor, labels: Tensor) -> dict[str, Metric]:
    similarities = vectors @ vectors.T
    known = (labels[:, None] >= 0) & (labels[None, :] >= 0)
    pair = torch.ones_like(known).triu(diagonal=1) & known  # each once, none with itself
    same = labels[:, None] == labels[None, :]
    # A label of its own for each unlabelled one: it makes no margin and is in no one's way.
    spread = torch.where(labels < 0, -1 - torch.arange(len(labels), device=labels.device), labels)
    margins = class_margins(vectors, spread)
    judged = ~margins.isnan()
    return {
        "same_class_similarity": _mean(similarities, same & pair),
        "other_class_similarity": _mean(similarities, ~same & pair),
        "margin": Share(margins.nan_to_num().sum(), judged.sum()),
    }


def _mean(values: Tensor, chosen: Tensor) -> Share:
    return Share(torch.where(chosen, values, 0.0).sum(), chosen.sum())
