"""Charts of a run: Vega-Lite specifications, which the page draws as SVG in the reader's browser.

Vega draws in the page's colours (CSS variables, so that light and dark need no second picture),
labels every mark for screen readers, and shows the values at the pointer. The page embeds the
library itself once and fetches nothing; vl-convert carries it.

The specifications are plain dictionaries, https://vega.github.io/vega-lite/docs/. Altair would
write the same ones, but checks each against the schema, which takes longer than all the rest of a
report.
"""

import functools
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import vl_convert
from markupsafe import Markup

from vidcsl.io import replacing
from vidcsl.report.summary import (
    Tree,
    attack_title,
    by_budget,
    interval,
    interval_text,
    number,
    plain,
)

Spec = dict[str, Any]
Row = dict[str, Any]

COLOURS = tuple(f"var(--{tone})" for tone in "abcdefgh")
"""The style sheet's colours; each is readable on a light and on a dark card."""

_HEIGHT = 230  # pixels
_MOST_POINTS = 120  # along x: a phone is 340 pixels wide, and more only make the page larger

# 6.4 shows "undefined" for names at the nearest point: it looks for them in the point's cell.
_VEGA_LITE = "6.1"

THEME: Spec = {
    "background": None,
    "font": "system-ui, sans-serif",
    "view": {"stroke": None},
    "axis": {
        "domain": False,
        "ticks": False,
        "tickCount": 5,
        "gridColor": "var(--rule)",
        "labelColor": "var(--soft)",
        "labelFontSize": 12,
        "labelPadding": 6,
        "labelOverlap": "greedy",
        "labelSeparation": 4,
        "titleColor": "var(--soft)",
        "titleFontSize": 12,
        "titleFontWeight": "normal",
    },
    "axisX": {"grid": False, "titlePadding": 8},
    # Above the axis rather than along it: a turned title costs width that a phone does not have.
    "axisY": {"titleAngle": 0, "titleAlign": "left", "titleAnchor": "start", "titleY": -12},
    "legend": {
        "orient": "bottom",
        "title": None,
        "columns": 3,
        "offset": 6,
        "labelColor": "var(--ink)",
        "labelFontSize": 12,
        "labelLimit": 220,
        "symbolType": "stroke",
        "symbolSize": 240,
        "symbolStrokeWidth": 2.5,
        "symbolOpacity": 1,
    },
    "line": {"strokeWidth": 2.2, "strokeCap": "round", "strokeJoin": "round"},
    "rule": {"color": "var(--soft)"},
    "text": {"color": "var(--soft)", "fontSize": 12},
}


def embedded(spec: Spec) -> Markup:
    """The element of a page that becomes the chart."""
    text = json.dumps(spec, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    # Names come from configs and file names: none may end the script element early.
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup('<div class="chart"><script type="application/json">{}</script></div>').format(
        Markup(text)
    )


@functools.cache
def library() -> Markup:
    """The scripts of Vega, Vega-Lite and vega-embed as one module that draws a page's charts."""
    # Bundling takes seconds, so the result is kept for the user's next reports.
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vidcsl"
    path = folder / f"vega-lite-{_VEGA_LITE}-{version('vl-convert-python')}.js"
    try:
        bundle = path.read_text(encoding="utf-8")
    except OSError:
        bundle = vl_convert.javascript_bundle(
            "window.vegaEmbed = vegaEmbed;", vl_version=_VEGA_LITE
        )
        try:
            with replacing(path) as partial:
                partial.write_text(bundle, encoding="utf-8")
        except OSError:
            pass  # a home that cannot be written to costs time, not the report
    # `ast`: without it Vega compiles expressions by eval, which the page's policy forbids.
    options = {"renderer": "svg", "actions": False, "ast": True, "config": THEME}
    return Markup(
        f"{bundle}\nfor (const chart of document.querySelectorAll('.chart')) {{\n"
        f"  await vegaEmbed(chart, JSON.parse(chart.textContent), {json.dumps(options)});\n"
        # The cells around points find the nearest one; they say nothing to a screen reader.
        "  for (const cells of chart.querySelectorAll('[class*=voronoi]')) cells.ariaHidden = true;"
        "\n}"
    )


# ----------------------------------------------------------------------
# The parts of which all charts of curves are made.


def line_chart(
    rows: Sequence[Row],
    description: str,
    *,
    x: str,
    y: str,
    of: str = "",
    per_cent: bool = False,
    zero: bool = True,
    levels: Sequence[tuple[str, float | None]] = (),
    height: int = _HEIGHT,
    budgets: Sequence[float] = (),
    looks: Mapping[str, tuple[str, bool]] | None = None,
    step: bool = False,
    also: Mapping[str, str] | None = None,
) -> Spec:
    """Curves; the values of the point nearest to the pointer are shown beside it.

    Args:
        rows: points `{"x", "y", "series"}`, each curve's in order; "y" None makes a gap. With
            "low" and "high" a band is drawn.
        description: what is to be seen, for those who do not see it.
        x, y: titles of the axes.
        of: what the name of a curve is: "arm", "budget".
        per_cent: whether y is a ratio to be written in per cent.
        zero: whether y starts at 0.
        levels: (label, value) of horizontal lines to compare with; None: no line.
        height: of the drawing, pixels.
        budgets: sizes of an attack's budget: ticks of an x axis on which small ones have room.
        looks: colour and whether dashed, by curve; by default colours in the order of the rows.
        step: whether y holds until the next x, as a histogram's counts do.
        also: {key of the rows: title} of further values to show at the pointer.
    """
    names: list[str] = list(dict.fromkeys(row["series"] for row in rows))
    looks = looks or {name: (COLOURS[i % len(COLOURS)], False) for i, name in enumerate(names)}
    colours = [looks[name][0] for name in names]
    dashes = [[6, 5] if looks[name][1] else [1, 0] for name in names]
    series = {"field": "series", "type": "nominal", "sort": None}
    x_axis: Spec = {"field": "x", "type": "quantitative", "title": x, "scale": {"zero": False}}
    if budgets:
        # log(1 + eps / smallest): 0 has a place, and a doubling is a step as long as the next.
        least = min(eps for eps in budgets if eps > 0)
        x_axis["scale"] |= {"type": "symlog", "constant": least, "nice": False}
        x_axis["axis"] = {"values": list(budgets), "format": ".4~g"}
    elif all(float(row["x"]).is_integer() for row in rows):
        x_axis["axis"] = {"tickMinStep": 1}  # there is no frame 0.5
    y_axis: Spec = {"field": "y", "type": "quantitative", "title": y or None}
    y_axis |= {"scale": {"zero": zero}, "axis": {"format": ".0~%"} if per_cent else {}}
    colour: Spec = {**series, "scale": {"domain": names, "range": colours}}
    if len(names) == 1:
        colour["legend"] = None
    shown: list[Spec] = [{**series, "title": of}] if of else []
    shown += [
        {"field": "x", "type": "quantitative", "title": x, "format": ".4~g"},
        {
            "field": "y",
            "type": "quantitative",
            "title": y or "value",
            "format": ".1~%" if per_cent else ".4~g",
        },
    ]
    shown += [{"field": k, "type": "nominal", "title": name} for k, name in (also or {}).items()]

    # Neither curves nor bands speak to a screen reader: their points say all of it.
    interpolation = {"interpolate": "step-after"} if step else {}
    line: Spec = {"mark": {"type": "line", "aria": False, **interpolation}}
    if any(looks[name][1] for name in names):  # else legends would speak of dashes, too
        line["encoding"] = {"strokeDash": {**series, "scale": {"domain": names, "range": dashes}}}
    layers: list[Spec] = [line, nearest_points(shown, always=bool(budgets))]
    if any("low" in row for row in rows):
        band = {"type": "area", "opacity": 0.16, "tooltip": None, "aria": False, **interpolation}
        ends = {"y": {"field": "low", "type": "quantitative"}, "y2": {"field": "high"}}
        layers.insert(0, {"mark": band, "encoding": ends})
    return {
        **_size(description, height=height),
        "layer": [
            {
                "data": {"values": list(rows)},
                "encoding": {"x": x_axis, "y": y_axis, "color": colour},
                "layer": layers,
            },
            *(_level(label, value) for label, value in levels if value is not None),
        ],
    }


def scatter_chart(
    rows: Sequence[Row],
    description: str,
    *,
    x: str,
    y: str,
    looks: Mapping[str, tuple[str, bool]],
) -> Spec:
    """Points `{"x", "y", "series", "seed"}`, y a ratio; the arguments are those of `line_chart`."""
    names = list(dict.fromkeys(row["series"] for row in rows))
    colours = [looks[name][0] for name in names]
    # What is dashed among curves is a square among points.
    shapes = ["square" if looks[name][1] else "circle" for name in names]
    series = {"field": "series", "type": "nominal", "sort": None, "legend": {"symbolSize": 80}}
    points = nearest_points(
        [
            {"field": "series", "type": "nominal", "title": "arm"},
            {"field": "seed", "type": "nominal", "title": "seed"},
            {"field": "x", "type": "quantitative", "title": x, "format": ".4~g"},
            {"field": "y", "type": "quantitative", "title": y, "format": ".1~%"},
        ],
        always=True,
    )
    points["encoding"] |= {
        "x": {"field": "x", "type": "quantitative", "title": x, "scale": {"zero": False}},
        "y": {"field": "y", "type": "quantitative", "title": y, "axis": {"format": ".0~%"}},
        "color": {**series, "scale": {"domain": names, "range": colours}},
        "shape": {**series, "scale": {"domain": names, "range": shapes}},
    }
    return {**_size(description), "data": {"values": list(rows)}, **points}


def nearest_points(shown: Sequence[Spec], *, always: bool = False) -> Spec:
    """A layer of points of which the one nearest to the pointer shows its values.

    Args:
        shown: fields of the tooltip, which are also what a screen reader says.
        always: whether all points are seen; else that one alone.
    """
    opacity = {"condition": {"param": "nearest", "empty": False, "value": 1}, "value": 0}
    select = {"type": "point", "nearest": True, "on": "pointerover", "clear": "pointerout"}
    return {
        "mark": {"type": "point", "filled": True, "size": 60, "opacity": 1},
        "params": [{"name": "nearest", "select": select}],
        "encoding": {"tooltip": list(shown), **({} if always else {"opacity": opacity})},
    }


def _level(label: str, value: float) -> Spec:
    """A dotted horizontal line with its name above its right end."""
    y = {"field": "level", "type": "quantitative"}
    text = {"type": "text", "align": "right", "dy": -7, "text": label, "aria": False}
    return {
        "data": {"values": [{"level": value}]},
        "encoding": {"y": y},
        "layer": [
            {"mark": {"type": "rule", "strokeDash": [2, 3], "description": label}},
            {"mark": text, "encoding": {"x": {"value": "width"}}},
        ],
    }


def _size(description: str, *, height: int = _HEIGHT) -> Spec:
    return {"width": "container", "height": height, "description": description}


# ----------------------------------------------------------------------
# The curves of a training run.

_SIDES = {
    "alignment": "Alignment",
    "uniformity": "Uniformity",
    "margin": "Margin between classes",
    "effective_rank": "Effective rank",
    "lr": "Learning rate",
    "clips_per_second": "Clips per second",
}


def _over_epochs(lines: Sequence[Tree], names: Mapping[str, str]) -> list[Row]:
    """Rows of what was logged, {key: name of the curve}, averaged over neighbouring lines."""
    size = math.ceil(len(lines) / _MOST_POINTS) or 1
    rows = []
    for key, name in names.items():
        if not any(number(line.get(key)) is not None for line in lines):
            continue
        for start in range(0, len(lines), size):
            part = lines[start : start + size]
            known = [value for line in part if (value := number(line.get(key))) is not None]
            epoch = sum(float(line["epoch"]) for line in part) / len(part)
            mean = sum(known) / len(known) if known else None
            rows.append({"x": _short(epoch), "y": _short(mean), "series": name})
    return rows


def loss_curve(lines: Sequence[Tree], training: Tree) -> Spec | None:
    """Loss over epochs; None where no loss was logged.

    Args:
        lines: of the log.
        training: section `training` of results.json.
    """
    rows = _over_epochs(lines, {"loss": "loss"})
    if not rows:
        return None
    ends = [row["y"] for row in rows if row["y"] is not None]
    description = f"Loss over epochs, from {plain(ends[0])} to {plain(ends[-1])}."
    levels = [("all clips alike", number(training.get("loss_of_chance")))]
    return line_chart(rows, description, x="epoch", y="loss", zero=False, levels=levels)


def false_negative_curves(lines: Sequence[Tree], found: Tree) -> Spec | None:
    """Ratio of pairs flagged as false negatives, their precision and recall over epochs.

    Args:
        lines: of the log.
        found: section `false_negatives` of results.json.
    """
    names = {"precision": "precision", "recall": "recall", "flagged": "flagged"}
    rows = _over_epochs(lines, names)
    if not any(row["y"] for row in rows):
        return None
    return line_chart(
        rows,
        "Fraction of pairs flagged as false negatives, with precision and recall, over epochs.",
        x="epoch",
        y="fraction of pairs",
        of="curve",
        per_cent=True,
        levels=[("precision of random flags", number(found.get("chance")))],
    )


def score_curves(lines: Sequence[Tree], *, chance: float | None) -> list[tuple[str, Spec]]:
    """(title, chart) of the scores of the encoder while it was trained.

    Args:
        lines: of the log, those of kind "scores".
        chance: of guessing the most frequent class of the test videos; None where unknown.
    """
    ratios = {
        "knn_top1": "kNN",
        "probe_top1": "linear probe",
        "teacher_agreement": "neighbours of the teacher",
    }
    rows = _over_epochs(lines, ratios)
    found = []
    if rows:
        chart = line_chart(
            rows,
            "Accuracy on training videos of held-out sources over epochs.",
            x="epoch",
            y="ratio",
            of="score",
            per_cent=True,
            levels=[("chance", chance)],
        )
        found.append(("Scores while training", chart))
    rows = _over_epochs(lines, {"rankme": "RankMe", "lidar": "LiDAR"})
    if rows:
        chart = line_chart(
            rows, "RankMe and LiDAR over epochs.", x="epoch", y="directions", of="score"
        )
        found.append(("Rank of the features", chart))
    return found


def class_similarity_curves(lines: Sequence[Tree]) -> Spec | None:
    """Mean similarity of pairs of one class and of pairs of two over epochs."""
    names = {
        "same_class_similarity": "same class",
        "other_class_similarity": "other class",
    }
    rows = _over_epochs(lines, names)
    if not rows:
        return None
    return line_chart(
        rows,
        "Mean cosine similarity of two videos of one class and of two classes over epochs.",
        x="epoch",
        y="cosine similarity",
        of="pairs of",
    )


def side_curves(lines: Sequence[Tree]) -> list[tuple[str, str, Spec]]:
    """(key, title, small chart) of each figure that is logged beside the loss."""
    return [
        (key, title, line_chart(rows, f"{title} over epochs.", x="epoch", y="", height=110))
        for key, title in _SIDES.items()
        if (rows := _over_epochs(lines, {key: title}))
    ]


# ----------------------------------------------------------------------
# Attacks and geometry.


def attack_curve(
    name: str,
    accuracies: Tree,
    survival: Tree,
    *,
    clean: float | None,
    clips: int | None,
    chance: float | None,
) -> Spec | None:
    """Accuracy, with its interval, and survival against the budget eps; the clean one stands at 0.

    None where no budget is known.
    """
    points = [(0.0, "0", clean), *by_budget(accuracies)]
    if len(points) == 1:
        return None
    rows = []
    for eps, _, value in points:
        low, high = interval(value, clips) or (None, None)
        row = {"x": eps, "y": value, "series": "accuracy", "low": low, "high": high}
        rows.append({**row, "interval": interval_text(value, clips)})
    if survival:
        for eps, _, value in [(0.0, "0", 1.0), *by_budget(survival)]:
            rows.append({"x": eps, "y": value, "series": "survival", "interval": "–"})
    return line_chart(
        rows,
        f"Accuracy under {attack_title(name)} against the budget; the table has the numbers.",
        x=budget_title(accuracies),
        y="fraction of clips",
        of="curve",
        per_cent=True,
        levels=[("chance", chance)],
        budgets=[eps for eps, _, _ in points],
        looks={"accuracy": (COLOURS[0], False), "survival": (COLOURS[1], True)},
        also={"interval": "95 % interval"},
    )


def budget_title(keys: Iterable[str]) -> str:
    """Title of an axis of budgets, by how they are written."""
    in_255 = all(key.endswith("/255") for key in keys)
    return "ε, in 1/255 of the pixel range" if in_255 else "ε, norm over the whole clip"


def frame_curve(profiles: Tree) -> Spec | None:
    """Size of the perturbation in each frame, a curve a budget."""
    rows = [
        {"x": frame, "y": _short(number(value)), "series": f"ε {eps}"}
        for eps, values in profiles.items()
        if any(number(value) is not None for value in values)
        for frame, value in enumerate(values)
    ]
    if not rows:
        return None
    return line_chart(
        rows,
        "Root mean square of the perturbation in each frame of the clip, by budget.",
        x="frame",
        y="RMS, 1/255",
        of="budget",
    )


def similarity_histogram(histogram: Tree) -> Spec | None:
    """Distribution of the cosine similarity of same-class and of other-class pairs.

    None where it is empty or its counts and edges do not fit each other.
    """
    edges = [value for value in map(number, histogram.get("edges", ())) if value is not None]
    ratios = {}
    for key in ("same_class", "other_class"):
        counts = [number(count) or 0.0 for count in histogram.get(key, ())]
        if sum(counts) and len(edges) == len(counts) + 1:
            ratios[key.replace("_", " ")] = [count / sum(counts) for count in counts]
    if not ratios:
        return None
    used = [i for ratio in ratios.values() for i, value in enumerate(ratio) if value]
    first, last = max(0, min(used) - 1), min(len(edges) - 2, max(used) + 1)  # and one bin beside
    rows = []
    for name, ratio in ratios.items():
        for i in range(first, last + 2):  # a step goes on to the next edge: the last one ends it
            value = _short(ratio[i]) if i <= last else 0
            rows.append(
                {"x": _short(edges[i]), "y": value, "series": name, "low": 0, "high": value}
            )
    return line_chart(
        rows,
        "Histogram of the similarity of same-class and of other-class pairs of test videos.",
        x="cosine similarity",
        y="fraction of pairs",
        of="pairs of",
        per_cent=True,
        step=True,
    )


def _short(value: float | None) -> float | None:
    """Five digits: more than a chart shows, and half of what JSON would write."""
    return None if value is None else float(f"{value:.5g}")
