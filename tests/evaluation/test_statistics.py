import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from vidcsl.evaluation.statistics import (
    PairedOutcomes,
    VideoOutcomes,
    adjusted,
    blind_precision,
    bootstrap_interval,
    bootstrap_means,
    gap_closed,
    gap_interval,
    paired_p,
    proportion_interval,
    quantile_interval,
    wilson_interval,
)


@given(st.integers(1, 5000), st.floats(0, 1))
def test_wilson_ends_are_the_accuracies_that_a_score_test_just_accepts(count, part):
    right = round(part * count)
    accuracy = right / count
    low, high = wilson_interval(right, count)
    assert 0 <= low <= accuracy + 1e-12
    assert accuracy - 1e-12 <= high <= 1
    for end in (low, high):
        distance = abs(accuracy - end)
        assert distance == pytest.approx(1.959964 * math.sqrt(end * (1 - end) / count), abs=1e-7)
    mirrored = wilson_interval(count - right, count)
    assert mirrored == (pytest.approx(1 - high), pytest.approx(1 - low))


def test_wilson_intervals_by_reference():
    assert wilson_interval(10, 20) == pytest.approx((0.2993, 0.7007), abs=1e-4)
    assert wilson_interval(0, 10) == pytest.approx((0, 0.2775), abs=1e-4)
    assert wilson_interval(0, 0) == (0.0, 1.0)
    narrow = wilson_interval(10, 20, level=0.5)
    assert 0.2993 < narrow[0] < narrow[1] < 0.7007


def test_the_middle_of_draws_leaves_out_both_ends():
    assert quantile_interval(np.arange(1001), level=0.9) == pytest.approx((50, 950))


def test_figures_of_the_same_videos_share_their_draws():
    clean = np.arange(60) < 30
    means = bootstrap_means({"clean": clean, "half": clean / 2, "rest": ~clean}, draws=300)
    assert means["half"] == pytest.approx(means["clean"] / 2)
    assert means["rest"] == pytest.approx(1 - means["clean"])
    assert means["clean"].std() == pytest.approx((0.25 / 60) ** 0.5, rel=0.15)
    again = bootstrap_means({"clean": clean}, draws=300)
    assert (again["clean"] == means["clean"]).all()


def test_the_bootstrap_agrees_with_the_binomial():
    right = torch.arange(400) < 100
    low, high = bootstrap_interval(right)
    spread = 1.96 * (0.25 * 0.75 / 400) ** 0.5
    assert low == pytest.approx(0.25 - spread, abs=0.004)
    assert high == pytest.approx(0.25 + spread, abs=0.004)
    assert bootstrap_interval(right) == (low, high)  # the seed's, not the machine's
    values = torch.rand(400, generator=torch.Generator().manual_seed(0))
    assert bootstrap_interval(values, seed=0) != bootstrap_interval(values, seed=1)


def test_clips_of_a_video_stand_and_fall_together():
    videos = torch.rand(50, generator=torch.Generator().manual_seed(0)).round()
    as_clips = videos.repeat_interleave(10)
    wide, narrow = bootstrap_interval(videos), bootstrap_interval(as_clips)
    assert wide[1] - wide[0] > 2 * (narrow[1] - narrow[0])
    assert bootstrap_interval(torch.ones(9)) == (1, 1)


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
        paired = PairedOutcomes(arms, condition="clean")
        found = paired.compare("one", "other", paired.draws(count=400))
        inside += found.interval[0] <= 0.1 <= found.interval[1]
    assert 0.9 <= inside / 120 <= 1


def test_only_seeds_and_videos_that_both_have_are_paired():
    one = {s: outcomes(drawn(s, 0.5, 20)) for s in (0, 1, 2)}
    other = {1: one[1], 2: outcomes(one[2].right["clean"], list_id="another"), 3: one[0]}
    paired = PairedOutcomes({"one": one, "other": other}, condition="clean")
    assert paired.seeds == [1]
    found = paired.compare("one", "other", paired.draws())
    assert (found.difference, found.p, found.better, found.worse) == (0, 1, 0, 0)


def test_only_seeds_that_have_the_condition_are_paired():
    one = {0: outcomes([1, 0]), 1: outcomes([1, 0], condition="1/255")}
    assert PairedOutcomes({"one": one, "other": one}, condition="1/255").seeds == [1]


def test_seeds_are_drawn_as_videos_are():
    # Every seed is all right or all wrong: only the choice of seeds moves the mean.
    right = {seed: outcomes(np.full(9, seed % 2)) for seed in range(4)}
    drawn_means = PairedOutcomes({"one": right}, condition="clean").draws()["one"]
    assert set(drawn_means.round(6)) == {0, 0.25, 0.5, 0.75, 1}
    assert drawn_means.std() == pytest.approx(0.25, abs=0.01)  # of 4 fair coins


def test_videos_of_different_lists_are_different_videos():
    one = {seed: outcomes([1, 1, 0], list_id=f"list {seed}") for seed in range(2)}
    other = {seed: outcomes([0, 1, 0], list_id=f"list {seed}") for seed in range(2)}
    paired = PairedOutcomes({"one": one, "other": other}, condition="clean")
    assert paired.compare("one", "other", paired.draws()).videos == 6
    assert paired.by_video("one").tolist() == [1, 1, 0] * 2


def test_seeds_on_one_list_are_not_more_videos():
    right, wrong = np.ones(30, bool), np.arange(30) < 20
    paired = PairedOutcomes(
        {
            "one": dict.fromkeys(range(4), outcomes(right)),
            "other": dict.fromkeys(range(4), outcomes(wrong)),
        },
        condition="clean",
    )
    found = paired.compare("one", "other", paired.draws())
    assert (found.videos, found.better, found.worse) == (30, 40, 0)
    assert found.p == pytest.approx(2 * 0.5**10)
    single = PairedOutcomes(
        {"one": {0: outcomes(right)}, "other": {0: outcomes(wrong)}}, condition="clean"
    )
    width = np.ptp(single.compare("one", "other", single.draws()).interval)
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


def test_a_blind_guess_is_judged_on_labelled_videos_alone():
    labels = [k % 10 for k in range(140)] + [-1] * 140
    assert blind_precision(labels) == pytest.approx(0.0935, abs=1e-4)  # 0.0233 of all pairs
    same, known = 0, 0
    for i, one in enumerate(labels):
        for j, other in enumerate(labels):
            if i != j and min(one, other) >= 0:
                known, same = known + 1, same + (one == other)
    assert blind_precision(labels) == same / known
    assert blind_precision([-1, -1, 0]) is None


def test_the_interval_of_an_accuracy_has_a_width_at_both_ends_and_covers_near_them():
    # The bootstrap gave (1, 1) of 80 right videos, and covered 90 % of the time at 0.98.
    assert proportion_interval([True] * 80) == wilson_interval(80, 80)
    assert proportion_interval([0.0] * 80)[1] > 0.04
    coverage = 0.0
    for right in range(195, 213):
        low, high = proportion_interval(np.arange(212) < right)
        coverage += stats.binom.pmf(right, 212, 0.98) * (low <= 0.98 <= high)
    assert coverage == pytest.approx(0.958, abs=1e-3)
    parts = [0.0, 0.5, 1.0] * 30  # clips of videos: no video is right or wrong
    assert proportion_interval(parts, seed=2) == bootstrap_interval(parts, seed=2)
