from itertools import pairwise
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vidcsl.report.charts import WIDTH, Axis, Chart, Series, linear_axis

finite = st.floats(-1e6, 1e6, allow_nan=False)


def _texts(chart: Chart, kind: str) -> list[ElementTree.Element]:
    root = ElementTree.fromstring(chart.svg())
    return [text for text in root.iter("text") if kind in text.attrib["class"].split()]


@given(st.lists(finite, min_size=1, max_size=20), st.booleans())
def test_linear_axis_covers_the_values_with_a_few_even_ticks(
    values: list[float], zero: bool
) -> None:
    axis = linear_axis("x", values, zero=zero)
    slack = 1e-6 * max(1.0, *map(abs, values))
    assert axis.low <= min(values) + slack
    assert axis.high >= max(values) - slack
    assert 2 <= len(axis.ticks) <= 9
    gaps = [b - a for a, b in pairwise(axis.ticks)]
    assert gaps == pytest.approx([gaps[0]] * len(gaps), rel=1e-3)
    if zero:
        assert any(abs(tick) < 1e-9 for tick in axis.ticks)


def test_linear_axis_of_nothing_still_stands() -> None:
    assert linear_axis("x", [None]).ticks[0] == 0


def test_lines_stand_at_their_values_and_break_at_gaps() -> None:
    chart = Chart(
        "d",
        Axis("x", (0, 4), 0, 4),
        Axis("y", (0, 1), 0, 1),
        [Series("", [0, 1, 2, 3, 4], [0.0, 1.0, None, 0.5, 0.5])],
    )
    root = ElementTree.fromstring(chart.svg())
    (path,) = [p.attrib["d"] for p in root.iter("path") if "line" in p.attrib["class"].split()]
    assert path.count("M") == 2
    first, second, third, fourth = (
        tuple(map(float, pair.split())) for pair in path.replace("M", "L").split("L")[1:]
    )
    assert first[1] > third[1] > second[1]  # y grows downwards
    assert third[1] == pytest.approx((first[1] + second[1]) / 2)
    assert second[0] - first[0] == pytest.approx((fourth[0] - first[0]) / 4, abs=0.1)


def test_names_at_the_ends_do_not_touch_and_keep_their_order() -> None:
    ends = {"low": 0.0, "also low": 0.01, "third": 0.02, "high": 1.0}
    chart = Chart(
        "d",
        Axis("x", (0, 1), 0, 1),
        Axis("y", (0, 1), 0, 1),
        [Series(name, [0, 1], [0.5, end]) for name, end in ends.items()],
    )
    heights = {text.text: float(text.attrib["y"]) for text in _texts(chart, "name")}
    order = [heights[name] for name in ("high", "third", "also low", "low")]
    assert all(b - a >= 16 for a, b in pairwise(order))
    for text in _texts(chart, "name"):
        assert float(text.attrib["x"]) + 6.5 * len(text.text or "") < WIDTH


def test_tick_texts_do_not_touch() -> None:
    crowded = Axis("x", [i / 100 for i in range(101)], 0, 1)
    chart = Chart("d", crowded, Axis("y", (0, 1), 0, 1), [Series("", [0, 1], [0.0, 1.0])])
    places = [
        float(text.attrib["x"])
        for text in _texts(chart, "middle")
        if "tick" in text.attrib["class"]
    ]
    assert 3 < len(places) < 30
    assert min(b - a for a, b in pairwise(places)) > 20


def test_names_are_escaped() -> None:
    name = '<script>alert(1)</script>&"'
    axis = Axis(name, (0, 1), 0, 1)
    chart = Chart(name, axis, axis, [Series(name, [0, 1], [0.0, 1.0], notes=[name, name])])
    root = ElementTree.fromstring(chart.svg())
    assert not list(root.iter("script"))
    assert root.attrib["aria-label"] == name
    assert [title.text for title in root.iter("title")] == [name, name]
