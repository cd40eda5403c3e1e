import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.methods.made import cosines, foreign, samples
from vidcsl.methods.false_negatives.similarity import AdaptiveSimilarity, NearestFew, nearest, risen


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
