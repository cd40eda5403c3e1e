from itertools import product

import pytest
import torch
import torch.nn.functional as F

from vidcsl.objectives.false_negatives import (
    DETECTORS,
    TREATMENTS,
    AdaptiveSimilarity,
    Samples,
    detection_counts,
    view_scores,
)
from vidcsl.objectives.losses import Pairs

VIEWS = 2


def samples(*, videos=8, seed=0, labels=None):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.arange(videos).repeat_interleave(VIEWS)
    groups = torch.randint(3, (videos,), generator=generator).repeat_interleave(VIEWS)
    drawn = torch.randint(3, (videos,), generator=generator).repeat_interleave(VIEWS)
    return Samples(ids, groups, drawn if labels is None else labels)


def cosines(rows, seed=0):
    z = F.normalize(torch.randn(rows, 5, generator=torch.Generator().manual_seed(seed)), dim=1)
    return z @ z.T


@pytest.mark.parametrize("name", DETECTORS)
def test_own_views_are_never_flagged(name):
    batch = samples()
    flagged = DETECTORS[name]()(cosines(16), batch, batch, 1.0)
    assert flagged.dtype == torch.bool
    assert flagged.shape == (16, 16)
    assert not (flagged & batch.same(batch, "videos")).any()


def test_oracle_and_groups_against_a_double_loop():
    batch = samples()
    for name, ids in (("labels", batch.labels), ("known_groups", batch.groups)):
        flagged = DETECTORS[name]()(cosines(16), batch, batch, 0.0)
        for i, j in product(range(16), range(16)):
            wanted = ids[i] == ids[j] and batch.videos[i] != batch.videos[j]
            assert flagged[i, j] == wanted


def test_unknown_ids_are_never_equal():
    unknown = torch.full((16,), -1)
    batch = Samples(samples().videos, unknown, unknown)
    for name in ("labels", "known_groups"):
        assert not DETECTORS[name]()(cosines(16), batch, batch, 1.0).any()


@pytest.mark.parametrize("name", ["none", "known_groups", "adaptive"])
def test_label_free_detectors_do_not_read_labels(name):
    one, other = samples(), samples(labels=torch.zeros(16, dtype=torch.long))
    detector = DETECTORS[name]()
    assert torch.equal(
        detector(cosines(16), one, one, 1.0), detector(cosines(16), other, other, 1.0)
    )


def test_adaptive_flags_the_top_share_by_the_views_vote():
    batch, similarities = samples(), cosines(16)
    flagged = AdaptiveSimilarity(ceiling=0.3, start=0, ramp=0)(similarities, batch, batch, 1.0)
    for i in range(16):
        partner = i ^ 1
        scores = (similarities[i] + similarities[partner]) / 2
        others = [j for j in range(16) if batch.videos[j] != batch.videos[i]]
        top = sorted(others, key=lambda j, s=scores: -float(s[j]))[: int(0.3 * 14)]
        assert set(top) == set(flagged[i].nonzero().flatten().tolist())


def test_adaptive_schedule():
    detector = AdaptiveSimilarity(ceiling=0.2, start=0.25, ramp=0.5)
    assert [detector.share(p) for p in (0, 0.2, 0.25)] == [0, 0, 0]
    assert detector.share(0.5) == pytest.approx(0.1)
    assert detector.share(0.75) == detector.share(1.0) == pytest.approx(0.2)
    batch = samples()
    assert not detector(cosines(16), batch, batch, 0.1).any()


@pytest.mark.parametrize(("aggregate", "reduce"), [("mean", torch.mean), ("max", torch.amax)])
def test_view_scores(aggregate, reduce):
    similarities = cosines(6)
    videos = torch.tensor([7, 3, 7, 3, 5, 7])
    scores = view_scores(similarities, videos, aggregate)
    for i in range(6):
        torch.testing.assert_close(scores[i], reduce(similarities[videos == videos[i]], dim=0))


@pytest.mark.parametrize("treatment", TREATMENTS)
def test_treatments_keep_positives_in_the_denominator(treatment):
    batch = samples()
    itself = torch.eye(16).bool()
    positives = batch.same(batch, "videos") & ~itself
    flagged = DETECTORS["labels"]()(cosines(16), batch, batch, 1.0)
    after = TREATMENTS[treatment](Pairs(positives, itself), flagged)
    assert not (after.positives & after.ignored).any()
    assert (after.positives >= positives).all()
    changed = (after.positives != positives) | (after.ignored != itself)
    assert torch.equal(changed, flagged)


def test_detection_counts():
    batch, similarities = samples(), cosines(16)
    oracle = DETECTORS["labels"]()(similarities, batch, batch, 1.0)
    counts = detection_counts(oracle, batch, batch)
    assert counts["right_pairs"] == counts["judged_pairs"] == counts["false_negative_pairs"] > 0
    assert counts["candidate_pairs"] == 16 * 14
    unlabelled = Samples(batch.videos, batch.groups, torch.full((16,), -1))
    assert detection_counts(oracle, unlabelled, unlabelled)["judged_pairs"] == 0
