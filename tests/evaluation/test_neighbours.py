import pytest
import torch
import torch.nn.functional as F

from vidcsl.evaluation.neighbours import first_hits, knn_accuracy, nearest, retrieval_recall


def unit(rows, seed):
    return F.normalize(torch.randn(rows, 6, generator=torch.Generator().manual_seed(seed)), dim=1)


def test_neighbours_and_votes_agree_with_a_loop():
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
    assert knn_accuracy(*arguments, k=7) == voted / 17
    assert retrieval_recall(*arguments) == {f"R@{k}": found[k] / 17 for k in found}


def test_a_vote_counts_by_its_temperature():
    gallery = F.normalize(torch.tensor([[1.0, 0.1], [1.0, 1.0], [1.0, 1.1]]), dim=1)
    arguments = torch.tensor([[1.0, 0.0]]), torch.tensor([0]), gallery, torch.tensor([0, 1, 1])
    # One near voice against two farther ones.
    assert knn_accuracy(*arguments, k=3, temperature=0.07) == 1
    assert knn_accuracy(*arguments, k=3, temperature=10.0) == 0


def test_the_last_rank_is_the_whole_gallery():
    gallery, labels = unit(4, 0), torch.arange(4)
    found = retrieval_recall(gallery, labels, gallery, labels, ranks=[1, 4, 5])
    assert found == {"R@1": 1.0, "R@4": 1.0}


def test_a_video_finds_itself():
    gallery, labels = unit(30, 2), torch.arange(30)
    assert knn_accuracy(gallery, labels, gallery, labels, k=1) == 1
    assert retrieval_recall(gallery, labels, gallery, labels, ranks=[1]) == {"R@1": 1.0}


@pytest.mark.parametrize("chunks", [(3, 7), (100, 1), (1, 100)])
@pytest.mark.parametrize("k", [1, 7, 99])
def test_chunks_of_both_sides_find_the_same(chunks, k):
    queries, gallery = unit(17, 0), unit(40, 1)
    whole = (queries @ gallery.T).topk(min(k, 40), dim=1)
    values, rows = nearest(queries, gallery, k=k, query_chunk=chunks[0], gallery_chunk=chunks[1])
    torch.testing.assert_close(values, whole.values)
    assert torch.equal(rows, whole.indices)


def test_first_hits_are_places():
    gallery, labels = torch.eye(4), torch.tensor([0, 1, 1, 2])
    query = F.normalize(torch.tensor([[4.0, 3.0, 2.0, 1.0]]), dim=1)
    for label, place in ((0, 1), (1, 2), (2, 4), (9, 5)):
        found = first_hits(query, torch.tensor([label]), gallery, labels, within=4)
        assert found.tolist() == [place]
    assert first_hits(query, torch.tensor([2]), gallery, labels, within=3).tolist() == [4]
