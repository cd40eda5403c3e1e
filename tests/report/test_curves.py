import math
from itertools import pairwise

import numpy as np
import pytest

from tests.report.run_folder import log_lines, results
from vidcsl.report import charts as curves


def _training() -> list[dict]:
    return [line for line in log_lines() if line["kind"] == "train"]


def test_many_lines_are_averaged_and_keep_their_mean() -> None:
    lines = [{"epoch": (i + 1) / 100, "step": i, "loss": float(i)} for i in range(2400)]
    chart = curves.loss_curve(lines)
    assert chart is not None
    (series,) = chart.series
    assert len(series.y) == 240
    assert np.mean(series.y) == pytest.approx(np.mean([line["loss"] for line in lines]))
    assert list(series.x) == sorted(series.x)
    assert series.x[-1] == pytest.approx(24, abs=0.1)
    assert chart.x.low <= series.x[0] <= series.x[-1] <= chart.x.high


@pytest.mark.parametrize("loss", [None, math.nan])
def test_a_diverged_loss_leaves_a_gap_not_a_number(loss: float | None) -> None:
    lines = [{"epoch": 0, "loss": 2.0}, {"epoch": 0, "loss": loss}, {"epoch": 0, "loss": 1.0}]
    chart = curves.loss_curve(lines)
    assert chart is not None
    assert chart.series[0].y == [2.0, None, 1.0]
    assert "nan" not in chart.svg()
    assert curves.loss_curve(lines[1:2]) is None


def test_removal_curves_need_a_removal() -> None:
    nothing = [{"epoch": 0, "removed": 0.0, "precision": None, "recall": 0.0}]
    assert curves.false_negative_curves(nothing, {}) is None
    chart = curves.false_negative_curves(_training(), results()["false_negatives"])
    assert chart is not None
    assert [line.label for line in chart.series] == ["precision", "recall", "flagged"]
    ((label, chance),) = chart.levels
    assert "blind guess" in label
    assert chance == 0.199


def test_side_curves_appear_where_logged() -> None:
    names = [name for name, _, _ in curves.side_curves(_training())]
    geometry = ["alignment", "uniformity", "margin", "effective_rank"]
    assert names == [*geometry, "lr", "clips_per_second"]
    assert curves.side_curves([{"epoch": 0, "loss": 1.0}]) == []


def test_class_similarities_stand_in_one_chart() -> None:
    chart = curves.class_similarity_curves(_training())
    assert chart is not None
    assert [line.label for line in chart.series] == ["same class", "other class"]
    assert curves.class_similarity_curves([{"epoch": 0, "loss": 1.0}]) is None


def _attack(**changes: object) -> curves.Chart:
    content = results()
    arguments: dict = {"clean": 0.34, "clips": 212, "chance": 0.2} | changes
    chart = curves.attack_curve(
        "pgd_linf", content["attacks"]["pgd_linf"], content["survival"]["pgd_linf"], **arguments
    )
    assert chart is not None
    return chart


def test_attack_curve_starts_at_the_clean_accuracy() -> None:
    accuracy, survival = _attack().series
    assert (accuracy.x[0], accuracy.y[0]) == (0, 0.34)
    assert (survival.x[0], survival.y[0]) == (0, 1.0)
    assert list(accuracy.y[1:]) == list(results()["attacks"]["pgd_linf"].values())
    assert all(low <= y <= high for y, (low, high) in zip(accuracy.y, accuracy.band, strict=True))


def test_small_budgets_have_room() -> None:
    axis = _attack().x
    places = [axis.place(eps) for eps in (0, 0.1, 0.25, 0.5, 1, 8)]
    assert (places[0], places[-1]) == (0, 1)
    assert min(b - a for a, b in pairwise(places)) > 0.08


def test_attack_curve_without_clean_or_clips_has_gaps_and_no_band() -> None:
    accuracy, _ = _attack(clean=None, clips=None).series
    assert accuracy.y[0] is None
    assert set(accuracy.band) == {None}
    assert curves.attack_curve("a", {}, {}, clean=0.3, clips=2, chance=None) is None


def test_histogram_shows_shares_of_pairs() -> None:
    chart = curves.similarity_histogram(
        {"edges": [-1, 0, 1], "same_class": [1, 3], "other_class": [30, 10]}
    )
    assert chart is not None
    same, other = chart.series
    assert same.y == [0, 0.25, 0.25, 0.75, 0.75, 0]
    assert other.y == [0, 0.75, 0.75, 0.25, 0.25, 0]
    assert same.x == [-1, -1, 0, 0, 1, 1]


def test_histogram_leaves_out_the_empty_ends() -> None:
    chart = curves.similarity_histogram(
        {"edges": range(8), "same_class": [0, 0, 0, 5, 0, 0, 0], "other_class": [0] * 7}
    )
    assert chart is not None
    (same,) = chart.series
    assert (min(same.x), max(same.x), max(same.y)) == (2, 5, 1)


@pytest.mark.parametrize(
    "histogram", [{}, {"edges": [0, 1], "same_class": [0]}, {"edges": [0, 1], "same_class": [1, 2]}]
)
def test_an_empty_or_wrong_histogram_is_not_drawn(histogram: dict) -> None:
    assert curves.similarity_histogram(histogram) is None
