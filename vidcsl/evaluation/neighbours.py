"""Nearest neighbours: kNN classification and retrieval on unit features."""

from collections.abc import Sequence

from torch import Tensor

RANKS = (1, 5, 10, 20, 50)


def knn_accuracy(
    queries: Tensor,
    query_labels: Tensor,
    gallery: Tensor,
    gallery_labels: Tensor,
    *,
    k: int = 20,
    temperature: float = 0.07,
    chunk: int = 4096,
) -> float:
    """Top-1 in [0, 1] of a vote of the k nearest, weighted by exp(cosine / temperature).

    Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", 2018.

    Args:
        queries, gallery: unit vectors `[n, D]` and `[m, D]`.
        query_labels, gallery_labels: int64 `[n]` and `[m]`, all known.
        k: neighbours that vote; at most m.
        chunk: queries compared at a time, to bound memory.
    """
    classes = int(max(query_labels.max(), gallery_labels.max())) + 1
    right = 0
    for start in range(0, len(queries), chunk):
        near = (queries[start : start + chunk] @ gallery.T).topk(min(k, len(gallery)), dim=1)
        votes = near.values.new_zeros(len(near.values), classes)
        votes.scatter_add_(1, gallery_labels[near.indices], (near.values / temperature).exp())
        right += int((votes.argmax(dim=1) == query_labels[start : start + chunk]).sum())
    return right / len(queries)


def retrieval_recall(
    queries: Tensor,
    query_labels: Tensor,
    gallery: Tensor,
    gallery_labels: Tensor,
    *,
    ranks: Sequence[int] = RANKS,
    chunk: int = 4096,
) -> dict[str, float]:
    """`{"R@k": share of queries with a gallery video of their class among the k nearest}`.

    The protocol of video retrieval on UCF101 and HMDB51: queries are test videos, the gallery is
    the training list. Arguments as in `knn_accuracy`; ranks beyond the gallery are left out.
    """
    ranks = [rank for rank in ranks if rank <= len(gallery)]
    found = dict.fromkeys(ranks, 0)
    for start in range(0, len(queries), chunk):
        near = (queries[start : start + chunk] @ gallery.T).topk(max(ranks), dim=1).indices
        hits = gallery_labels[near] == query_labels[start : start + chunk, None]
        for rank in ranks:
            found[rank] += int(hits[:, :rank].any(dim=1).sum())
    return {f"R@{rank}": found[rank] / len(queries) for rank in ranks}
