import pytest
import torch
import torch.nn.functional as F

from vidcsl.evaluation.neighbours import knn_accuracy, retrieval_recall


def unit(rows, seed):
    return F.normalize(torch.randn(rows, 6, generator=torch.Generator().manual_seed(seed)), dim=1)


@pytest.mark.parametrize("chunk", [3, 100])
def test_against_a_loop(chunk):
    queries, gallery = unit(17, 0), unit(40, 1)
    query_labels, gallery_labels = torch.arange(17) % 3, torch.arange(40) % 3
    voted, found = 0, dict.fromkeys((1, 5, 10, 20), 0)
    for query, label in zip(queries, query_labels, strict=True):
        order = sorted(range(40), key=lambda j, q=query: -float(q @ gallery[j]))
        votes = [0.0] * 3
        for j in order[:7]:
            votes[gallery_labels[j]] += float(torch.exp(query @ gallery[j] / 0.07))
        voted += votes.index(max(votes)) == label
        for k in found:
            found[k] += any(gallery_labels[j] == label for j in order[:k])
    arguments = (queries, query_labels, gallery, gallery_labels)
    assert knn_accuracy(*arguments, k=7, chunk=chunk) == voted / 17
    assert retrieval_recall(*arguments, chunk=chunk) == {f"R@{k}": found[k] / 17 for k in found}


def test_a_video_finds_itself():
    gallery, labels = unit(30, 2), torch.arange(30)
    assert knn_accuracy(gallery, labels, gallery, labels, k=1) == 1
    assert retrieval_recall(gallery, labels, gallery, labels, ranks=[1]) == {"R@1": 1.0}
