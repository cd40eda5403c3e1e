import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from tests.methods.made import cosines, foreign, samples
from vidcsl.methods.false_negatives import AGGREGATES, Samples, SupportScores, pooled
from vidcsl.methods.false_negatives.detector import AdaptiveSimilarity, NearestFew, nearest, risen

REDUCE = {
    "own": lambda scores, i: scores[i],
    "mean": lambda s, _: s.mean(0),
    "max": lambda s, _: s.amax(0),
}


def unit(*shape, seed=0):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_pooled_over_the_views_of_a_video(aggregate):
    similarities = unit(6, 4) @ unit(5, 4, seed=1).T
    scores = pooled(similarities, views=3, aggregate=aggregate)
    for row in range(6):
        video = similarities[row // 3 * 3 : row // 3 * 3 + 3]
        torch.testing.assert_close(scores[row], REDUCE[aggregate](video, row % 3))


@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_support_views_score_block_by_block(aggregate):
    support, candidates = unit(4, 5, 6), unit(7, 6, seed=1)
    scores = SupportScores(support, candidates, views=2, aggregate=aggregate)
    every = torch.cat([scores(slice(0, 4)), scores(slice(4, 8))])
    for row in range(8):
        scored = torch.stack([candidates @ view for view in support[row // 2]])
        torch.testing.assert_close(every[row], REDUCE[aggregate](scored, row % 2))


@pytest.mark.parametrize(("rows", "columns"), [(5, 7), (1, 300), (3, 0)])
def test_samples_are_the_same_where_both_are_known_and_equal(rows, columns):
    generator = torch.Generator().manual_seed(0)
    mine = torch.randint(-1, 3, (rows,), generator=generator)
    theirs = torch.randint(-1, 3, (columns,), generator=generator)
    same = Samples(*[mine] * 4).same(Samples(*[theirs] * 4), "groups")
    assert same.dtype == torch.bool
    assert torch.equal(same, (mine[:, None] == theirs) & (mine[:, None] >= 0) & (theirs >= 0))


def test_adaptive_flags_the_top_fraction_of_each_rows_negatives():
    rows, scores = samples(), cosines(16)
    negatives = foreign(rows, rows)
    negatives[3, :5] = False  # a row with fewer
    detector = AdaptiveSimilarity(ceiling=0.3, start=0, ramp=0)
    flagged = detector(scores, negatives, rows, rows, 1.0)
    for i in range(16):
        others = negatives[i].nonzero().flatten().tolist()
        top = sorted(others, key=lambda j, i=i: -float(scores[i, j]))[: int(0.3 * len(others))]
        assert set(top) == set(flagged[i].nonzero().flatten().tolist())


def test_adaptive_schedule():
    detector = AdaptiveSimilarity(ceiling=0.2, start=0.25, ramp=0.5)
    rows = samples(videos=51)
    negatives, scores = foreign(rows, rows), cosines(102)  # 100 negatives of each anchor
    flagged = {
        progress: detector(scores, negatives, rows, rows, progress).sum(dim=1).unique().tolist()
        for progress in (0.1, 0.25, 0.5, 0.75, 1.0)
    }
    assert flagged == {0.1: [0], 0.25: [0], 0.5: [10], 0.75: [20], 1.0: [20]}
    assert risen(0.3, start=0.3, ramp=0.0) == 1


def test_fnc_takes_at_most_k_and_only_similar_ones():
    rows, scores = samples(), cosines(16)
    negatives = foreign(rows, rows)
    flagged = NearestFew(nearest=3, threshold=0.2, start=0.5)(scores, negatives, rows, rows, 0.5)
    assert flagged.any()
    for i in range(16):
        others = [j for j in range(16) if negatives[i, j]]
        top = sorted(others, key=lambda j, i=i: -float(scores[i, j]))[:3]
        wanted = {j for j in top if scores[i, j] > 0.2}
        assert wanted == set(flagged[i].nonzero().flatten().tolist())
    early = NearestFew(nearest=3, threshold=0.2, start=0.5)(scores, negatives, rows, rows, 0.4)
    assert not early.any()


@given(st.integers(0, 10_000))
def test_nearest_against_sorting(seed):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, 6, (4, 9), generator=generator) / 5  # many ties
    eligible = torch.rand(4, 9, generator=generator) < 0.6
    counts = torch.randint(0, 10, (4,), generator=generator).minimum(eligible.sum(1))
    chosen = nearest(scores, eligible, counts)
    for row, fits, count, flags in zip(scores, eligible, counts.tolist(), chosen, strict=True):
        ranked = sorted(row[fits].tolist(), reverse=True)
        least = ranked[count - 1] if count else 2.0
        assert torch.equal(flags, fits & (row >= least))
