from itertools import product

import pytest
import torch

from tests.methods.made import cosines, foreign, make_detector, samples
from vidcsl.evaluation.statistics import blind_precision
from vidcsl.methods.false_negatives import DETECTORS, Samples
from vidcsl.methods.false_negatives.known import LabelOracle, pair_draws


def flags(name, rows, scores=None):
    scores = cosines(len(rows)) if scores is None else scores
    return make_detector(name)(scores, foreign(rows, rows), rows, rows, 1.0)


@pytest.mark.parametrize("name", DETECTORS)
def test_only_negatives_are_flagged(name):
    rows = samples()
    flagged = flags(name, rows)
    assert flagged.dtype == torch.bool
    assert flagged.shape == (16, 16)
    assert not (flagged & ~foreign(rows, rows)).any()


@pytest.mark.parametrize(("name", "field"), [("labels", "labels"), ("known_groups", "groups")])
def test_against_a_double_loop(name, field):
    rows = samples()
    flagged, ids = flags(name, rows), getattr(rows, field)
    for i, j in product(range(16), range(16)):
        assert flagged[i, j] == (ids[i] == ids[j] and rows.videos[i] != rows.videos[j])


@pytest.mark.parametrize("name", ["labels", "known_groups"])
def test_unknown_ids_are_never_equal(name):
    rows = samples()
    unknown = torch.full((16,), -1)
    assert not flags(name, Samples(rows.videos, unknown, unknown, rows.views)).any()


@pytest.mark.parametrize("name", [name for name in DETECTORS if name != "labels"])
def test_label_free_detectors_do_not_read_labels(name):
    one, other = samples(), samples(labels=torch.zeros(16, dtype=torch.long))
    assert torch.equal(flags(name, one), flags(name, other))


def many(videos=400, classes=5, views=2):
    ids = torch.arange(videos).repeat_interleave(views)
    return Samples(ids, ids, ids % classes, torch.arange(views).repeat(videos))


@pytest.mark.parametrize(
    ("recall", "precision"), [(0.5, 1.0), (1.0, 0.5), (0.25, 0.4), (0.0, 0.5), (1.0, 1.0)]
)
def test_an_oracle_of_stated_recall_and_precision(recall, precision):
    rows = many()
    negatives = foreign(rows, rows)
    chance = blind_precision(rows.labels[::2].tolist())
    oracle = LabelOracle(oracle_recall=recall, oracle_precision=precision, chance=chance, seed=3)
    flagged = oracle(cosines(len(rows)), negatives, rows, rows, 0.0)
    same = rows.same(rows, "labels") & negatives
    right, wrong = int((flagged & same).sum()), int((flagged & ~same).sum())
    assert not (flagged & ~negatives).any()
    assert right / int(same.sum()) == pytest.approx(recall, abs=0.01)
    assert (right / (right + wrong) if recall else wrong) == pytest.approx(
        precision if recall else 0, abs=0.01
    )
    by_video = flagged.view(400, 2, 400, 2)
    assert torch.equal(by_video.any(dim=3).any(dim=1), by_video.all(dim=3).all(dim=1))


@pytest.mark.parametrize("precision", [1.0, 0.5])
def test_a_worse_oracle_finds_the_same_pairs_in_every_batch_and_others_by_another_seed(precision):
    # Classes of unequal size, where the part of an anchor's pairs that is wrong once depended on
    # its class and on the batch: nearly half of the wrong pairs were flagged one way only.
    rows = many()
    rows = Samples(rows.videos, rows.groups, rows.labels * rows.labels // 4, rows.views)
    chance = blind_precision(rows.labels[::2].tolist())

    def found(rows, *, seed, progress=0.0):
        oracle = LabelOracle(
            oracle_recall=0.5, oracle_precision=precision, chance=chance, seed=seed
        )
        return oracle(cosines(len(rows)), foreign(rows, rows), rows, rows, progress)

    whole = found(rows, seed=1)
    assert torch.equal(found(rows[slice(100, 200)], seed=1, progress=1.0), whole[100:200, 100:200])
    assert torch.equal(whole, whole.T)
    assert not torch.equal(whole, found(rows, seed=2))
    wrong = whole & ~rows.same(rows, "labels")
    right = whole & rows.same(rows, "labels")
    assert int(right.sum()) / int((right | wrong).sum()) == pytest.approx(precision, abs=0.01)


def test_draws_of_pairs_are_even():
    draws = pair_draws(torch.arange(300), torch.arange(300), seed=0)
    counts = torch.histc(draws[torch.ones(300, 300).tril(-1).bool()], bins=10, min=0, max=1)
    assert (counts / counts.sum()).tolist() == pytest.approx([0.1] * 10, abs=0.01)
