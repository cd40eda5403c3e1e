from itertools import product

import pytest
import torch

from tests.objectives.made import cosines, foreign, make_detector, samples
from vidcsl.objectives.false_negatives import DETECTORS, Samples


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
