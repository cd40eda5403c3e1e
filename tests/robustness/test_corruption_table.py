import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.processes import run_in_processes
from vidcsl.distributed import DistributedContext
from vidcsl.errors import UserError
from vidcsl.robustness.corruption_table import (
    bootstrap_intervals,
    category_scores,
    condition,
    conditions,
    corruption_table,
    finished_videos,
    gamma_absolute,
    gamma_relative,
    mean_performance,
    relative_performance,
    robustness_scores,
)
from vidcsl.robustness.corruptions import SUITES, corrupt, names
from vidcsl.robustness.targets import Clips
from vidcsl.run_folder import ResultCache

NAMES = ["P/gaussian_noise", "C/contrast", "V/nal_loss"]
VIDEOS, BATCH = 7, 3
ALONE = DistributedContext(rank=0, size=1, device=torch.device("cpu"))


class Brightest(torch.nn.Module):
    """Predicts the channel with the largest mean; counts the clips that it sees."""

    seen = 0

    def forward(self, clips):
        self.seen += len(clips)
        return clips.mean((2, 3, 4))


def batches(rank=0, size=1, skip=()):
    generator = torch.Generator().manual_seed(0)
    clips = torch.rand(VIDEOS, 3, 4, 24, 24, generator=generator) * 0.1 + 0.4
    labels = torch.arange(VIDEOS) % 3
    for start in list(range(0, VIDEOS, BATCH))[rank::size]:
        rows = range(start, min(start + BATCH, VIDEOS))
        if not set(rows) <= set(skip):
            some = slice(rows.start, rows.stop)
            yield Clips(clips[some], labels[some], [10 + i for i in rows], list(rows))


def naive(name, severity):
    correct = []
    for batch in batches():
        for clip, label, seed in zip(batch.clips, batch.labels, batch.seeds, strict=True):
            corrupted = corrupt(clip[None], name, severity=severity, seeds=[seed])
            correct.append(int(corrupted.mean((2, 3, 4)).argmax()) == int(label))
    return correct


def test_the_table_counts_correct_predictions_clip_by_clip():
    table = corruption_table(Brightest(), batches(), NAMES, distributed=ALONE)
    accuracies = table.accuracies()
    assert set(accuracies) == {"P", "C", "V"}
    for name in NAMES:
        suite, _, bare = name.partition("/")
        for severity in (1, 4):
            correct = naive(name, severity)
            assert table.correct(name)[:, severity - 1].tolist() == correct
            assert accuracies[suite][bare][severity - 1] == pytest.approx(np.mean(correct))
    assert table.correct_when_clean().tolist() == naive("P/jpeg", 0)
    assert set(table.repeated()) <= {"V/nal_loss"}


def _in_two(distributed, folder):
    result_cache = ResultCache(folder, settings={"a": 1}, rank=distributed.rank)
    mine = batches(distributed.rank, distributed.size)
    table = corruption_table(
        Brightest(), mine, NAMES, distributed=distributed, result_cache=result_cache
    )
    return table.predictions


def test_two_processes_make_the_same_table_as_one(tmp_path):
    alone = corruption_table(Brightest(), batches(), NAMES, distributed=ALONE).predictions
    assert run_in_processes(_in_two, 2, tmp_path) == [alone, alone]


def test_a_stopped_run_computes_only_what_is_missing(tmp_path):
    whole = corruption_table(Brightest(), batches(), NAMES, distributed=ALONE)
    conditions_each = 1 + 5 * len(NAMES)

    class Stops(Brightest):
        def forward(self, clips):
            if self.seen >= BATCH * conditions_each + 2 * BATCH:  # in the second batch
                raise KeyboardInterrupt
            return super().forward(clips)

    with pytest.raises(KeyboardInterrupt):
        corruption_table(
            Stops(),
            batches(),
            NAMES,
            distributed=ALONE,
            result_cache=ResultCache(tmp_path, settings={}),
        )
    result_cache = ResultCache(tmp_path, settings={})
    done = finished_videos(result_cache, NAMES)
    assert done == set(range(BATCH))
    model = Brightest()
    table = corruption_table(
        model, batches(skip=done), NAMES, distributed=ALONE, result_cache=result_cache
    )
    assert table.predictions == whole.predictions
    assert model.seen == VIDEOS * conditions_each - BATCH * conditions_each - 2 * BATCH


def test_a_batch_with_some_predictions_missing_is_computed(tmp_path):
    whole = corruption_table(Brightest(), batches(), NAMES[:1], distributed=ALONE)
    result_cache = ResultCache(tmp_path, settings={})
    for key, predictions in whole.predictions.items():
        result_cache.record(key, [0], [predictions[0]])
    table = corruption_table(
        Brightest(), batches(), NAMES[:1], distributed=ALONE, result_cache=result_cache
    )
    assert table.predictions == whole.predictions


def test_one_more_corruption_costs_only_itself(tmp_path):
    result_cache = ResultCache(tmp_path, settings={})
    corruption_table(
        Brightest(), batches(), NAMES[:1], distributed=ALONE, result_cache=result_cache
    )
    model = Brightest()
    corruption_table(model, batches(), NAMES[:2], distributed=ALONE, result_cache=result_cache)
    assert model.seen == 5 * VIDEOS


def test_videos_without_predictions_are_left_out():
    table = corruption_table(Brightest(), batches(), NAMES[:1], distributed=ALONE).over([0, 2, 99])
    assert table.videos == [0, 2]
    assert table.correct(NAMES[0]).shape == (2, 5)


def test_videos_that_lack_one_prediction_are_left_out_of_all():
    table = corruption_table(Brightest(), batches(), NAMES[:1], distributed=ALONE)
    last = condition(NAMES[0], 5)
    some = {**table.predictions, last: {v: a for v, a in table.predictions[last].items() if v != 2}}
    assert replace(table, predictions=some).over([0, 2, 4]).videos == [0, 4]


def test_conditions_tell_strengths_apart():
    keys = [key for key, _, _ in conditions(names())]
    assert len(set(keys)) == len(keys) == 1 + 5 * len(names())
    assert condition("P/jpeg", 2) == 'P/jpeg 2 {"quality": 18}'


# Scores.

RATIO = st.floats(0, 1)
P = {"gaussian_noise": [0.4, 0.3, 0.3, 0.2, 0.1], "jpeg": [0.5, 0.5, 0.4, 0.4, 0.3]}
C = {"h264": [0.6, 0.5, 0.4, 0.3, 0.2]}


def test_definitions_by_hand():
    assert gamma_absolute(0.8, 0.6) == pytest.approx(0.8)
    assert gamma_relative(0.8, 0.6) == pytest.approx(0.75)
    assert mean_performance(P) == pytest.approx((0.26 + 0.42) / 2)
    assert relative_performance(0.8, P) == pytest.approx(0.34 / 0.8)


def test_every_corruption_counts_alike_whatever_its_severities():
    assert mean_performance({"jpeg": [0.2], "fog": [0.4, 0.6]}) == pytest.approx(0.35)


def whole(suite, value):
    """A suite of which all counted corruptions ran."""
    return {name: [value] * 5 for name, each in SUITES[suite].items() if each.scored}


def test_each_score_is_taken_over_its_own_suite():
    scores = robustness_scores(0.5, {"P": whole("P", 0.34), "C": whole("C", 0.4)})
    assert scores["gamma_a"] == pytest.approx(1 - (0.5 - 0.34))
    assert scores["gamma_r"] == pytest.approx(0.34 / 0.5)
    assert scores["mPC"] == pytest.approx(0.4)
    assert scores["rPC"] == pytest.approx(0.8)
    assert scores["over"] == {
        "P": {"corruptions": 18, "published": 18, "severities": 5},
        "C": {"corruptions": 12, "published": 12, "severities": 5},
    }


def test_a_part_of_a_suite_has_no_published_score():
    # Five corruptions of P and one of C: what was called the mean accuracy was that of C alone.
    five = dict(list(whole("P", 0.252).items())[:5])
    scores = robustness_scores(0.5, {"P": five, "C": {"h264": [0.312] * 5}})
    assert [scores[key] for key in ("gamma_a", "gamma_r", "mPC", "rPC")] == [None] * 4
    assert scores["mean"]["accuracy"] == pytest.approx(0.262)
    assert scores["mean"]["retained"] == pytest.approx(0.524)
    assert scores["over"]["P"]["corruptions"] == 5
    assert scores["over"]["C"] == {"corruptions": 1, "published": 12, "severities": 5}
    quick = robustness_scores(0.5, {"C": {**whole("C", 0.4), "h264": [0.4, 0.4]}})
    assert quick["mPC"] is None
    assert quick["over"]["C"]["severities"] == 2


def test_relative_scores_are_undefined_without_clean_accuracy():
    scores = robustness_scores(0.0, {"P": whole("P", 0.34), "C": C})
    assert scores["gamma_r"] is None
    assert scores["rPC"] is None
    assert scores["mean"]["retained"] is None
    assert scores["gamma_a"] == pytest.approx(1.34)


def test_nothing_run_gives_no_scores():
    assert robustness_scores(0.5, {}) == {
        "gamma_a": None,
        "gamma_r": None,
        "mPC": None,
        "rPC": None,
        "over": {},
    }


@pytest.mark.parametrize(
    ("clean", "suites"),
    [
        (43.4, {"P": P}),
        (0.5, {"P": {"jpeg": [50.0]}}),
        (0.5, {"P": {"jpeg": []}}),
        (0.5, {"P": {"jpg": [0.5]}}),
        (0.5, {"Q": {"jpeg": [0.5]}}),
        (math.nan, {"P": P}),
    ],
)
def test_percentages_and_unknown_names_are_refused(clean, suites):
    with pytest.raises(UserError):
        robustness_scores(clean, suites)


def test_categories_partition_the_suite():
    everything = {name: [0.3] * 5 for name in SUITES["P"]}
    everything["jpeg"] = everything["mpeg2"] = everything["mpeg4"] = [0.6] * 5
    categories = category_scores(0.6, everything, suite="P")
    assert set(categories) == {"noise", "blur", "digital", "camera", "temporal"}
    assert categories["digital"]["accuracy"] == pytest.approx(0.6)
    assert categories["noise"]["gamma_r"] == pytest.approx(0.5)
    assert categories["noise"]["gamma_a"] == pytest.approx(0.7)


@given(clean=st.floats(0.01, 1), perturbed=RATIO)
def test_gammas_are_one_exactly_where_nothing_is_lost(clean, perturbed):
    absolute, relative = gamma_absolute(clean, perturbed), gamma_relative(clean, perturbed)
    assert relative == pytest.approx(perturbed / clean)
    assert gamma_absolute(clean, clean) == gamma_relative(clean, clean) == 1
    assert (absolute <= 1) == (perturbed <= clean) or absolute == pytest.approx(1)


def test_corruptions_outside_the_published_twelve_do_not_count():
    with_rates = {"C": C | {"h264_bit_rate": [0.0] * 5, "motion_blur_ssv2": [1.0] * 5}}
    assert robustness_scores(0.5, with_rates) == robustness_scores(0.5, {"C": C})
    alone = robustness_scores(0.5, {"C": {"h264_bit_rate": [0.0] * 5}})
    assert alone["mPC"] is None
    assert alone["over"] == {}


def test_a_suite_of_our_own_is_named_as_such():
    scores = robustness_scores(0.5, {"V": {"snow": [0.3] * 5}})
    assert list(scores["over"]) == ["V"]
    assert scores["mean"]["accuracy"] == pytest.approx(0.3)
    assert scores["mPC"] is None


def test_bootstrap_intervals_cover_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(60):
        clean = rng.random(80) < 0.7
        share = np.where(clean, 0.5, 0.1) * (rng.random(80) < 0.9)
        truth = (0.7 * 0.5 + 0.3 * 0.1) * 0.9
        low, high = bootstrap_intervals(clean, {"all": share}, resamples=300)["all"]["accuracy"]
        assert low <= share.mean() <= high
        hits += low <= truth <= high
    assert hits >= 52


@pytest.mark.parametrize(("confidence", "z"), [(0.95, 1.96), (0.5, 0.6745)])
def test_bootstrap_intervals_against_the_binomial(confidence, z):
    right = np.arange(400) < 100
    found = bootstrap_intervals(right, {"all": right.astype(float)}, confidence=confidence)["all"]
    reach = z * (0.25 * 0.75 / 400) ** 0.5
    assert found["accuracy"] == pytest.approx([0.25 - reach, 0.25 + reach], abs=0.005)


def test_bootstrap_draws_a_video_with_all_its_answers():
    clean = np.array([True] * 30 + [False] * 30)
    share = np.where(clean, 0.8, 0.0)
    interval = bootstrap_intervals(clean, {"all": share})["all"]
    assert interval["gamma_r"] == pytest.approx([0.8, 0.8])
    assert interval["accuracy"][1] - interval["accuracy"][0] > 0.15
    assert bootstrap_intervals(np.zeros(4, bool), {"all": np.zeros(4)})["all"].keys() == {
        "accuracy",
        "gamma_a",
    }
