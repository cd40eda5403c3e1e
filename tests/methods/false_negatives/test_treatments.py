import pytest
import torch

from tests.methods.made import TEMPERATURE, cosines, foreign, samples
from vidcsl.methods.false_negatives import TREATMENTS, detection_counts
from vidcsl.methods.losses import Pairs, nt_xent


def role(name, pairs, flagged, sure, i, j):
    """(is a positive, weight in the denominator) of a pair after the treatment."""
    if pairs.ignored[i, j]:
        return False, 0.0
    if not flagged[i, j] or pairs.positives[i, j]:
        negatives = pairs.negatives()[i]
        scaled = name == "rescale" and negatives[j]
        weight = negatives.sum() / (negatives & ~flagged[i]).sum() if scaled else 1.0
        return bool(pairs.positives[i, j]), float(weight)
    return {
        "eliminate": (False, 0.0),
        "rescale": (False, 0.0),
        "attract": (True, 1.0),
        "attract_sure": (True, 1.0) if sure[i, j] else (False, 0.0),
        "weight": (False, 0.3),
    }[name]


@pytest.mark.parametrize("name", TREATMENTS)
def test_the_denominator_is_what_the_formula_says(name):
    rows, scores = samples(), cosines(16).double()
    itself = torch.eye(16).bool()
    pairs = Pairs(rows.same(rows, "videos") & ~itself, itself)
    flagged = rows.same(rows, "labels") & foreign(rows, rows)
    sure = flagged & (torch.arange(16) % 3 == 0)
    treated = TREATMENTS.bind(name, {"WEIGHT": 0.3})(pairs, flagged, sure)
    losses, defined = nt_xent(scores, treated, temperature=TEMPERATURE)
    assert defined.all()
    for i in range(16):
        roles = [role(name, pairs, flagged, sure, i, j) for j in range(16)]
        logits = (scores[i] / TEMPERATURE).tolist()
        denominator = sum(
            weight * torch.tensor(x).exp() for x, (_, weight) in zip(logits, roles, strict=True)
        )
        terms = [
            denominator.log() - x
            for x, (positive, _) in zip(logits, roles, strict=True)
            if positive
        ]
        assert float(losses[i]) == pytest.approx(float(sum(terms)) / len(terms), rel=1e-5)


def test_weights_of_none_and_all():
    rows, scores = samples(), cosines(16)
    itself = torch.eye(16).bool()
    pairs = Pairs(rows.same(rows, "videos") & ~itself, itself)
    flagged = rows.same(rows, "labels") & foreign(rows, rows)
    loss = {
        weight: nt_xent(
            scores, TREATMENTS["weight"](pairs, flagged, flagged, weight=weight), temperature=0.2
        )
        for weight in (0.0, 1.0)
    }
    gone = nt_xent(scores, TREATMENTS["eliminate"](pairs, flagged, flagged), temperature=0.2)
    kept = nt_xent(scores, pairs, temperature=0.2)
    torch.testing.assert_close(loss[0.0], gone)
    torch.testing.assert_close(loss[1.0], kept)


def test_a_flag_changes_negatives_alone_and_weights_add_up():
    kinds = torch.tensor([[0, 1, 2, 2]])  # a positive, an ignored, two negatives
    pairs = Pairs(kinds == 0, kinds == 1)
    flagged = torch.tensor([[True, True, True, False]])
    sure = torch.tensor([[True, True, False, False]])
    treated = {
        name: TREATMENTS.bind(name, {"WEIGHT": 0.5})(pairs, flagged, sure) for name in TREATMENTS
    }
    assert treated["eliminate"].ignored.tolist() == [[False, True, True, False]]
    assert treated["attract"].positives.tolist() == [[True, False, True, False]]
    assert treated["attract_sure"].ignored.tolist() == [[False, True, True, False]]
    assert treated["attract_sure"].positives.tolist() == [[True, False, False, False]]
    twice = TREATMENTS["weight"](treated["weight"], flagged, sure, weight=0.5)
    assert twice.weights[0, [0, 2, 3]].tolist() == [1, 0.25, 1]


def test_counts_by_class_against_loops():
    rows = samples()
    rows.labels[4] = rows.labels[5] = -1
    negatives = foreign(rows, rows)
    flagged = (cosines(16, seed=4) > 0.3) & negatives
    counts = detection_counts(flagged, negatives, rows, rows, classes=3)
    for label in (0, 1, 2, -1):
        mine = [i for i in range(16) if rows.labels[i] == label]
        pairs = [(i, j) for i in mine for j in range(16) if negatives[i, j]]
        known = [(i, j) for i, j in pairs if label >= 0 and rows.labels[j] >= 0]
        alike = [(i, j) for i, j in known if rows.labels[j] == label]
        wanted = {
            "negatives": len(pairs),
            "flagged": sum(bool(flagged[p]) for p in pairs),
            "checked": sum(bool(flagged[p]) for p in known),
            "correct": sum(bool(flagged[p]) for p in alike),
            "false_negatives": len(alike),
        }
        assert {name: int(count[label]) for name, count in counts.items()} == wanted


def test_a_queue_of_more_than_65536_keys_is_counted():
    row, keys = samples(videos=1, views=1), samples(videos=70_000, views=1)
    every = torch.ones(1, 70_000, dtype=torch.bool)
    counts = detection_counts(every, every, row, keys, classes=3)
    assert int(counts["flagged"].sum()) == int(counts["negatives"].sum()) == 70_000
