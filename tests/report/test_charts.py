import json
import math
import re
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import vl_convert

from tests.report.run_folder import log_lines, results
from vidcsl.report import charts


def training() -> list[dict]:
    lines = [line for line in log_lines() if line["kind"] == "train"]
    return [{**line, "flagged": line["removed"]} for line in lines]


def rows(chart: dict[str, Any] | None, series: str = "") -> list[dict[str, Any]]:
    """The points of a chart's curves, or of one."""
    assert chart is not None
    points = chart["layer"][0]["data"]["values"]
    return [point for point in points if not series or point["series"] == series]


def ys(chart: dict[str, Any] | None, series: str = "") -> list[float | None]:
    return [point["y"] for point in rows(chart, series)]


def drawn(chart: dict[str, Any] | None) -> ElementTree.Element:
    """The chart as SVG, as a browser would draw it."""
    assert chart is not None
    spec = {**chart, "width": 400, "config": charts.THEME}
    return ElementTree.fromstring(vl_convert.vegalite_to_svg(spec, vl_version="6.1"))


def curves(chart: dict[str, Any] | None) -> list[str]:
    """The paths of a drawn chart's curves."""
    lines = [g for g in drawn(chart).iter() if "mark-line" in g.attrib.get("class", "")]
    return [path.attrib["d"] for line in lines for path in line.iter() if "d" in path.attrib]


def test_many_lines_are_averaged_and_keep_their_mean() -> None:
    lines = [{"epoch": (i + 1) / 100, "step": i, "loss": float(i)} for i in range(2400)]
    chart = charts.loss_curve(lines, {})
    assert len(rows(chart)) == 120
    assert np.mean(ys(chart)) == pytest.approx(np.mean([line["loss"] for line in lines]))
    x = [point["x"] for point in rows(chart)]
    assert x == sorted(x)
    assert x[-1] == pytest.approx(24, abs=0.15)


@pytest.mark.parametrize("loss", [None, math.nan])
def test_a_diverged_loss_leaves_a_gap_not_a_number(loss: float | None) -> None:
    losses = [2.0, 3.0, loss, 1.0, 1.5]
    lines = [{"epoch": i, "loss": value} for i, value in enumerate(losses)]
    chart = charts.loss_curve(lines, {})
    assert ys(chart) == [2.0, 3.0, None, 1.0, 1.5]
    (path,) = curves(chart)
    assert path.count("M") == 2
    assert "NaN" not in charts.embedded(chart or {})
    assert charts.loss_curve(lines[2:3], {}) is None


def test_false_negative_curves_need_a_flagged_pair() -> None:
    nothing = [{"epoch": 0, "flagged": 0.0, "precision": None, "recall": 0.0}]
    assert charts.false_negative_curves(nothing, {}) is None
    chart = charts.false_negative_curves(training(), results()["false_negatives"])
    names = list(dict.fromkeys(point["series"] for point in rows(chart)))
    assert names == ["precision", "recall", "flagged"]
    assert len(curves(chart)) == 3
    texts = [text.text for text in drawn(chart).iter("{http://www.w3.org/2000/svg}text")]
    assert {"precision of random flags", "precision", "flagged", "epoch", "40%"} <= set(texts)


def test_side_curves_appear_where_logged() -> None:
    names = [name for name, _, _ in charts.side_curves(training())]
    geometry = ["alignment", "uniformity", "margin", "effective_rank"]
    assert names == [*geometry, "lr", "clips_per_second"]
    assert charts.side_curves([{"epoch": 0, "loss": 1.0}]) == []


def test_class_similarities_stand_in_one_chart() -> None:
    chart = charts.class_similarity_curves(training())
    assert {point["series"] for point in rows(chart)} == {"same class", "other class"}
    assert charts.class_similarity_curves([{"epoch": 0, "loss": 1.0}]) is None


def attack(**changes: object) -> dict[str, Any] | None:
    content = results()
    arguments: dict = {"clean": 0.34, "clips": 212, "chance": 0.2} | changes
    return charts.attack_curve(
        "pgd_linf", content["attacks"]["pgd_linf"], content["survival"]["pgd_linf"], **arguments
    )


def test_an_attack_curve_starts_at_the_clean_accuracy() -> None:
    chart = attack()
    assert [rows(chart, name)[0]["x"] for name in ("accuracy", "survival")] == [0, 0]
    assert ys(chart, "accuracy") == [0.34, *results()["attacks"]["pgd_linf"].values()]
    assert ys(chart, "survival")[0] == 1
    assert all(point["low"] <= point["y"] <= point["high"] for point in rows(chart, "accuracy"))


def test_small_budgets_have_room() -> None:
    points = re.findall(r"[ML]([\d.]+),", curves(attack())[0])
    places = dict(zip((0, 0.1, 0.25, 0.5, 0.75, 1, 2, 4, 8), map(float, points), strict=True))
    chosen = [places[eps] / 400 for eps in (0, 0.1, 0.25, 0.5, 1, 8)]
    assert (chosen[0], chosen[-1]) == (0, 1)
    assert min(np.diff(chosen)) > 0.08


def test_an_attack_curve_without_clean_or_clips_has_gaps_and_no_band() -> None:
    chart = attack(clean=None, clips=None)
    assert ys(chart, "accuracy")[0] is None
    assert {point["low"] for point in rows(chart, "accuracy")} == {None}
    assert charts.attack_curve("a", {}, {}, clean=0.3, clips=2, chance=None) is None


def test_the_perturbation_has_a_curve_a_budget() -> None:
    chart = charts.frame_curve({"1/255": [0.5, None, 0.7], "2/255": [None]})
    assert ys(chart) == [0.5, None, 0.7]
    assert charts.frame_curve({"1/255": [math.nan]}) is None


def test_a_histogram_shows_ratios_of_pairs() -> None:
    chart = charts.similarity_histogram(
        {"edges": [-1, 0, 1], "same_class": [1, 3], "other_class": [30, 10]}
    )
    assert ys(chart, "same class") == [0.25, 0.75, 0]  # the last edge ends the last step
    assert ys(chart, "other class") == [0.75, 0.25, 0]
    assert [point["x"] for point in rows(chart, "same class")] == [-1, 0, 1]
    places = re.findall(r"[ML]([\d.]+),([\d.]+)", curves(chart)[0])
    across, down = ([float(place[axis]) for place in places] for axis in (0, 1))
    assert across == [0, 200, 200, 400, 400]  # each ratio holds until the next edge
    assert down[0] == down[1] > down[2] == down[3] < down[4]


def test_a_histogram_leaves_out_the_empty_ends() -> None:
    chart = charts.similarity_histogram(
        {"edges": range(8), "same_class": [0, 0, 0, 5, 0, 0, 0], "other_class": [0] * 7}
    )
    assert [(point["x"], point["y"]) for point in rows(chart)] == [(2, 0), (3, 1), (4, 0), (5, 0)]


@pytest.mark.parametrize(
    "histogram", [{}, {"edges": [0, 1], "same_class": [0]}, {"edges": [0, 1], "same_class": [1, 2]}]
)
def test_an_empty_or_wrong_histogram_is_not_drawn(histogram: dict) -> None:
    assert charts.similarity_histogram(histogram) is None


def test_curves_keep_their_colours_and_dashes() -> None:
    points = [{"x": x, "y": x / 2, "series": name} for name in ("a", "b") for x in (0, 1)]
    looks = {"a": (charts.COLOURS[3], True), "b": (charts.COLOURS[5], False)}
    chart = charts.line_chart(points, "d", x="x", y="y", of="arm", looks=looks)
    lines = [g for g in drawn(chart).iter() if "mark-line" in g.attrib.get("class", "")]
    strokes = [
        (path.attrib["stroke"], path.attrib.get("stroke-dasharray"))
        for line in lines
        for path in line.iter()
        if "stroke" in path.attrib
    ]
    assert strokes == [("var(--d)", "6,5"), ("var(--f)", "1,0")]


def test_scattered_points_say_what_they_are() -> None:
    points = [{"x": 0.5, "y": 0.25, "series": "plain", "seed": "3"}]
    looks = {"plain": (charts.COLOURS[0], False)}
    svg = drawn(charts.scatter_chart(points, "d", x="margin", y="ratio", looks=looks))
    labels = [each.attrib["aria-label"] for each in svg.iter() if "aria-label" in each.attrib]
    found = next(label for label in labels if "plain" in label)
    assert "seed: 3" in found
    assert "margin: 0.5" in found
    assert "ratio: 25%" in found


def test_names_do_not_end_the_script_element() -> None:
    name = '</script><script>alert(1)</script>&"<!--'
    points = [{"x": 0, "y": 1, "series": name}]
    element = charts.embedded(charts.line_chart(points, name, x=name, y=name, of=name))
    assert element.count("<") == 4  # of the div and of the script
    inner = element.partition(">")[2].partition(">")[2].partition("<")[0]
    assert json.loads(inner)["description"] == name


def test_the_library_is_kept_for_the_next_report(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    charts.library.cache_clear()
    (first, (kept,)) = charts.library(), (tmp_path / "vidcsl").iterdir()
    assert kept.read_text(encoding="utf-8") in first
    assert "</script" not in first.lower()
    kept.write_text("// kept")
    charts.library.cache_clear()
    assert charts.library().startswith("// kept")
    charts.library.cache_clear()


def test_a_home_that_cannot_be_written_to_costs_no_report(monkeypatch, tmp_path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    charts.library.cache_clear()
    assert "vegaEmbed" in charts.library()
    charts.library.cache_clear()


def test_the_loss_is_drawn_beside_that_of_an_encoder_that_knows_nothing() -> None:
    lines = [{"epoch": k / 4, "step": k, "loss": 5.7, "kind": "train"} for k in range(8)]
    assert "all clips alike" in json.dumps(charts.loss_curve(lines, {"loss_of_chance": 4.14}))
    assert "all clips alike" not in json.dumps(charts.loss_curve(lines, {}))
