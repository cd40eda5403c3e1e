"""Nearest neighbours: kNN classification and retrieval on unit features."""

from collections.abc import Sequence

import torch
from torch import Tensor

RANKS = (1, 5, 10, 20, 50)
QUERIES, GALLERY = 512, 65_536  # rows of a block of similarities: 128 MiB at a time


def nearest(
    queries: Tensor,
    gallery: Tensor,
    *,
    k: int,
    query_chunk: int = QUERIES,
    gallery_chunk: int = GALLERY,
) -> tuple[Tensor, Tensor]:
    """Cosine similarities and gallery rows of the k nearest, nearest first: `[n, k]` each.

    The matrix of all similarities is never in memory, only blocks of it.

    Args:
        queries, gallery: unit vectors `[n, D]` and `[m, D]`.
        k: number of neighbours; at most m are returned.
        query_chunk, gallery_chunk: rows of a block.
    """
    k = min(k, len(gallery))
    values = queries.new_empty(len(queries), k)
    rows = torch.empty(len(queries), k, dtype=torch.long)
    for start in range(0, len(queries), query_chunk):
        block = queries[start : start + query_chunk]
        best, where = block.new_empty(len(block), 0), rows.new_empty(len(block), 0)
        for first in range(0, len(gallery), gallery_chunk):
            # Keep the k best of the blocks so far and of this one.
            near = block @ gallery[first : first + gallery_chunk].T
            found = near.topk(min(k, near.shape[1]), dim=1)
            best = torch.cat([best, found.values], dim=1)
            where = torch.cat([where, found.indices + first], dim=1)
            kept = best.topk(min(k, best.shape[1]), dim=1)
            best, where = kept.values, where.gather(1, kept.indices)
        values[start : start + query_chunk], rows[start : start + query_chunk] = best, where
    return values, rows


def knn_predictions(
    queries: Tensor,
    gallery: Tensor,
    gallery_labels: Tensor,
    *,
    classes: int,
    k: int = 20,
    temperature: float = 0.07,
) -> Tensor:
    """Labels `[n]` by a vote of the k nearest neighbours, weighted by exp(cosine / temperature).

    Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", 2018.
    """
    values, rows = nearest(queries, gallery, k=k)
    votes = values.new_zeros(len(values), classes)
    # exp(1 / 0.07) is 1.6e6: float32 holds the sum of thousands of such votes.
    votes.scatter_add_(1, gallery_labels[rows], (values / temperature).exp())
    return votes.argmax(dim=1)


def knn_accuracy(
    queries: Tensor,
    query_labels: Tensor,
    gallery: Tensor,
    gallery_labels: Tensor,
    *,
    k: int = 20,
    temperature: float = 0.07,
) -> float:
    """Accuracy of `knn_predictions`, in [0, 1]; all labels are known."""
    classes = int(max(query_labels.max(), gallery_labels.max())) + 1
    predicted = knn_predictions(
        queries, gallery, gallery_labels, classes=classes, k=k, temperature=temperature
    )
    return int((predicted == query_labels).sum()) / len(queries)


def first_hits(
    queries: Tensor, query_labels: Tensor, gallery: Tensor, gallery_labels: Tensor, *, within: int
) -> Tensor:
    """The rank of the nearest gallery video of each query's class, `[n]`; 1 is the nearest.

    It is `within + 1` if there is none among the `within` nearest.
    """
    _, rows = nearest(queries, gallery, k=within)
    # `argmax` gives the first of equal ones, which is the nearest hit.
    hits = gallery_labels[rows] == query_labels[:, None]
    place = hits.float().argmax(dim=1) + 1
    return torch.where(hits.any(dim=1), place, within + 1)


def retrieval_recall(
    queries: Tensor,
    query_labels: Tensor,
    gallery: Tensor,
    gallery_labels: Tensor,
    *,
    ranks: Sequence[int] = RANKS,
) -> dict[str, float]:
    """`{"R@k": ratio of queries with a gallery video of their class among the k nearest}`.

    The protocol of video retrieval on UCF101 and HMDB51: queries are test videos, the gallery is
    the training list. Ranks larger than the gallery are left out.
    """
    ranks = [rank for rank in ranks if rank <= len(gallery)]
    place = first_hits(queries, query_labels, gallery, gallery_labels, within=max(ranks))
    return {f"R@{rank}": int((place <= rank).sum()) / len(queries) for rank in ranks}
