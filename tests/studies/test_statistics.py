import numpy as np
import pytest
from scipy import stats

from vidcsl.studies.analysis import (
    Paired,
    VideoOutcomes,
    adjusted,
    compare,
    gap_closed,
    gap_interval,
    paired_p,
)


def outcomes(right, *, list_id="list", condition="clean"):
    right = np.asarray(right, bool)
    return VideoOutcomes(list_id, tuple(range(len(right))), {condition: right})


def drawn(seed, share, count):
    return np.random.default_rng(seed).random(count) < share


def test_the_gap_closed():
    assert gap_closed(0.3, baseline=0.1, reference=0.5) == pytest.approx(0.5)
    assert gap_closed(0.05, baseline=0.1, reference=0.5) == pytest.approx(-0.125)
    assert gap_closed(0.3, baseline=0.5, reference=0.5) is None


def test_single_answers_are_tested_as_mcnemar_does():
    one, other = drawn(0, 0.6, 80).astype(float), drawn(1, 0.4, 80).astype(float)
    better, worse = int((one > other).sum()), int((one < other).sum())
    tail = stats.binom.cdf(min(better, worse), better + worse, 0.5)
    assert paired_p(one, other) == pytest.approx(min(1.0, 2 * tail))
    assert paired_p(one, one) == 1


def test_means_over_seeds_are_tested_by_randomisation():
    # All 2^10 signs by hand.
    one, other = np.array([1, 0.5, 1, 0, 1, 1, 0.5, 1, 0.5, 1]), np.full(10, 0.5)
    difference = one - other
    signs = 1 - 2 * ((np.arange(1024)[:, None] >> np.arange(10)) & 1)
    sums = (signs * difference).sum(axis=1)
    exact = (np.abs(sums) >= abs(difference.sum()) - 1e-9).mean()
    assert paired_p(one, other) == pytest.approx(exact, abs=1e-3)


def test_intervals_hold_the_truth_as_often_as_they_say():
    inside = 0
    for trial in range(120):
        arms = {
            name: {0: outcomes(drawn((trial, i), share, 150))}
            for i, (name, share) in enumerate({"one": 0.6, "other": 0.5}.items())
        }
        paired = Paired(arms, condition="clean")
        found = compare(paired, "one", "other", paired.draws(count=400))
        inside += found.interval[0] <= 0.1 <= found.interval[1]
    assert 0.9 <= inside / 120 <= 1


def test_only_seeds_and_videos_that_both_have_are_paired():
    one = {s: outcomes(drawn(s, 0.5, 20)) for s in (0, 1, 2)}
    other = {1: one[1], 2: outcomes(one[2].right["clean"], list_id="another"), 3: one[0]}
    paired = Paired({"one": one, "other": other}, condition="clean")
    assert paired.seeds == [1]
    found = compare(paired, "one", "other", paired.draws())
    assert (found.difference, found.p, found.better, found.worse) == (0, 1, 0, 0)


def test_only_seeds_that_have_the_condition_are_paired():
    one = {0: outcomes([1, 0]), 1: outcomes([1, 0], condition="1/255")}
    assert Paired({"one": one, "other": one}, condition="1/255").seeds == [1]


def test_seeds_are_drawn_as_videos_are():
    # Every seed is all right or all wrong: only the choice of seeds moves the mean.
    right = {seed: outcomes(np.full(9, seed % 2)) for seed in range(4)}
    drawn_means = Paired({"one": right}, condition="clean").draws()["one"]
    assert set(drawn_means.round(6)) == {0, 0.25, 0.5, 0.75, 1}
    assert drawn_means.std() == pytest.approx(0.25, abs=0.01)  # of 4 fair coins


def test_videos_of_different_lists_are_different_videos():
    one = {seed: outcomes([1, 1, 0], list_id=f"list {seed}") for seed in range(2)}
    other = {seed: outcomes([0, 1, 0], list_id=f"list {seed}") for seed in range(2)}
    paired = Paired({"one": one, "other": other}, condition="clean")
    assert compare(paired, "one", "other", paired.draws()).videos == 6
    assert paired.by_video("one").tolist() == [1, 1, 0] * 2


def test_seeds_on_one_list_are_not_more_videos():
    right, wrong = np.ones(30, bool), np.arange(30) < 20
    paired = Paired(
        {
            "one": dict.fromkeys(range(4), outcomes(right)),
            "other": dict.fromkeys(range(4), outcomes(wrong)),
        },
        condition="clean",
    )
    found = compare(paired, "one", "other", paired.draws())
    assert (found.videos, found.better, found.worse) == (30, 40, 0)
    assert found.p == pytest.approx(2 * 0.5**10)
    single = Paired({"one": {0: outcomes(right)}, "other": {0: outcomes(wrong)}}, condition="clean")
    width = np.ptp(compare(single, "one", "other", single.draws()).interval)
    assert np.ptp(found.interval) == pytest.approx(width, abs=0.04)


def test_no_interval_where_the_gap_is_not_settled():
    generator = np.random.default_rng(0)
    baseline, wide = generator.normal(0.1, 0.01, 2000), generator.normal(0.5, 0.01, 2000)
    low, high = gap_interval(generator.normal(0.3, 0.01, 2000), baseline, wide)
    assert low < 0.5 < high < 0.6
    assert gap_interval(wide, baseline, generator.normal(0.11, 0.01, 2000)) is None


def test_an_interval_leaves_out_a_fortieth_at_either_end():
    robust = np.linspace(0.2, 0.4, 2001)
    found = gap_interval(robust, np.full(2001, 0.1), np.full(2001, 0.6))
    assert found == pytest.approx((0.1 / 0.5 + 0.01, 0.3 / 0.5 - 0.01))


@pytest.mark.parametrize(("without", "known"), [(50, True), (51, False)])
def test_a_gap_may_lack_in_a_fortieth_of_the_draws(without, known):
    reference = np.where(np.arange(2000) < without, 0.1, 0.5)
    found = gap_interval(np.full(2000, 0.3), np.full(2000, 0.1), reference)
    assert (found is not None) == known


def test_p_values_are_adjusted():
    ps = [0.01, 0.02, 0.03, 0.5]
    assert adjusted(ps) == pytest.approx([0.04, 0.04, 0.04, 0.5])
    assert adjusted([]) == []
