"""Charts of a run."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup

from vidcsl.report.summary import (
    Tree,
    attack_title,
    by_budget,
    interval,
    interval_text,
    number,
    percent,
    plain,
)

# ----------------------------------------------------------------------
# Small line charts as inline SVG; their colours and type come from the page's style sheet.
#
# Drawn directly rather than by a plotting library: the text stays text in the page's font, one
# picture serves light and dark pages, and the same numbers always give the same bytes.

WIDTH = 480.0
_TOP, _LEFT, _BOTTOM = 28.0, 50.0, 46.0
_LABEL_HEIGHT, _CHARACTER = 16.0, 7.0  # of a direct label, at the style sheet's font size


def short(value: float) -> str:
    """A tick's number, with a minus sign that is not a hyphen."""
    return f"{value:g}".replace("-", "\u2212")


@dataclass(frozen=True)
class Axis:
    """A range, where its ticks stand, how they are written, and how values are spread along it."""

    label: str
    ticks: Sequence[float]
    low: float
    high: float
    text: Callable[[float], str] = short
    scale: Callable[[float], float] = float

    def place(self, value: float) -> float:
        """Position of `value` along the axis, 0 to 1."""
        low, high = self.scale(self.low), self.scale(self.high)
        return (self.scale(value) - low) / (high - low)


@dataclass(frozen=True)
class Series:
    """A line: `y` is None where it has a gap.

    `tone` is one of the style sheet's colours a to d, `band` a low and a high value for each point
    (or None), `notes` the text shown over each point; points are drawn where there are notes.
    The label stands beside the line's end, or above its point number `label_at`, on one side of it.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float | None]
    tone: str = "a"
    look: str = ""
    band: Sequence[tuple[float, float] | None] = ()
    notes: Sequence[str] = ()
    label_at: int | None = None
    label_side: str = "right"


@dataclass(frozen=True)
class Chart:
    """Lines over two axes; `levels` are labelled horizontal lines to compare with."""

    description: str
    x: Axis
    y: Axis
    series: Sequence[Series]
    levels: Sequence[tuple[str, float]] = field(default=())
    height: float = 300.0

    def svg(self) -> Markup:
        """The picture, `WIDTH` units wide, scaled by the page."""
        beside = [len(line.label) for line in self.series if line.label_at is None]
        right = WIDTH - 12 - _CHARACTER * max(beside, default=0)
        frame = _Frame(self.x, self.y, right=right, bottom=self.height - _BOTTOM)
        parts = [
            *frame.grid(),
            *(frame.level(label, value) for label, value in self.levels),
            *(frame.band(line) for line in self.series),
            *(frame.line(line) for line in self.series),
            *(part for line in self.series for part in frame.points(line)),
            *frame.end_labels(self.series),
            *frame.inner_labels(self.series),
        ]
        return Markup('<svg viewBox="0 0 {:g} {:g}" role="img" aria-label="{}">{}</svg>').format(
            WIDTH, self.height, self.description, Markup("\n").join(parts)
        )


@dataclass(frozen=True)
class _Frame:
    x_axis: Axis
    y_axis: Axis
    right: float
    bottom: float

    def x(self, value: float) -> float:
        return _LEFT + self.x_axis.place(value) * (self.right - _LEFT)

    def y(self, value: float) -> float:
        return self.bottom - self.y_axis.place(value) * (self.bottom - _TOP)

    def grid(self) -> list[Markup]:
        rule = Markup('<path class="grid" d="M{:.1f} {:.1f}H{:.1f}"/>')
        rows = [rule.format(_LEFT, self.y(tick), self.right) for tick in self.y_axis.ticks]
        across = [
            _text(_LEFT - 8, self.y(tick) + 4, self.y_axis.text(tick), "tick end")
            for tick in self.y_axis.ticks
        ]
        along = [
            _text(self.x(tick), self.bottom + 18, self.x_axis.text(tick), "tick middle")
            for tick in self._spaced_ticks()
        ]
        middle = (_LEFT + self.right) / 2
        names = [
            _text(middle, self.bottom + 38, self.x_axis.label, "axis middle"),
            _text(0, 9, self.y_axis.label, "axis"),
        ]
        return [*rows, *across, *along, *names]

    def _spaced_ticks(self) -> list[float]:
        """The ticks along x whose texts do not touch the one before."""
        kept: list[float] = []
        edge = -math.inf
        for tick in self.x_axis.ticks:
            half = _CHARACTER * len(self.x_axis.text(tick)) / 2
            if self.x(tick) - half > edge:
                kept.append(tick)
                edge = self.x(tick) + half + 5
        return kept

    def level(self, label: str, value: float) -> Markup:
        path = Markup('<path class="level" d="M{:.1f} {:.1f}H{:.1f}"/>')
        line = path.format(_LEFT, self.y(value), self.right)
        return line + _text(self.right - 4, self.y(value) - 5, label, "level end")

    def band(self, line: Series) -> Markup:
        pairs = zip(line.x, line.band, strict=False)
        edges = [(self.x(x), pair) for x, pair in pairs if pair is not None]
        upper = [f"{x:.1f} {self.y(high):.1f}" for x, (_, high) in edges]
        lower = [f"{x:.1f} {self.y(low):.1f}" for x, (low, _) in reversed(edges)]
        if not edges:
            return Markup("")
        path = Markup('<path class="band {}" d="M{}Z"/>')
        return path.format(line.tone, "L".join(upper + lower))

    def line(self, line: Series) -> Markup:
        steps: list[str] = []
        pen = "M"
        for x, y in zip(line.x, line.y, strict=True):
            if y is not None:
                steps.append(f"{pen}{self.x(x):.1f} {self.y(y):.1f}")
            pen = "M" if y is None else "L"
        return Markup('<path class="line {} {}" d="{}"/>').format(
            line.tone, line.look, "".join(steps)
        )

    def points(self, line: Series) -> list[Markup]:
        circle = Markup(
            '<circle class="point {}" cx="{:.1f}" cy="{:.1f}" r="3.5"><title>{}</title></circle>'
        )
        return [
            circle.format(line.tone, self.x(x), self.y(y), note)
            for x, y, note in zip(line.x, line.y, line.notes, strict=False)
            if y is not None
        ]

    def inner_labels(self, series: Sequence[Series]) -> list[Markup]:
        """The names of the lines that are labelled at one of their points."""
        return [
            _text(
                self.x(line.x[line.label_at]) + (4 if line.label_side == "right" else -4),
                self.y(line.y[line.label_at] or 0.0) - 6,
                line.label,
                f"name {line.tone} {'end' if line.label_side == 'left' else ''}",
            )
            for line in series
            if line.label_at is not None
        ]

    def end_labels(self, series: Sequence[Series]) -> list[Markup]:
        """The name of each line at its end, moved up or down until no two touch."""
        beside = [line for line in series if line.label_at is None and any_number(line.y)]
        ends = [(self.y(_last(line.y)), line) for line in beside if line.label]
        ends.sort(key=lambda end: end[0])
        heights = [height for height, _ in ends]
        for i in range(len(heights) - 2, -1, -1):  # from the lowest line upwards
            heights[i] = min(heights[i], heights[i + 1] - _LABEL_HEIGHT)
        shift = max(0.0, _TOP - heights[0]) if heights else 0.0
        return [
            _text(self.right + 7, height + shift + 4, line.label, f"name {line.tone}")
            for height, (_, line) in zip(heights, ends, strict=True)
        ]


def linear_axis(
    label: str,
    values: Sequence[float | None],
    *,
    zero: bool = True,
    text: Callable[[float], str] = short,
    count: int = 5,
) -> Axis:
    """An axis over `values` whose ticks are 1, 2 or 5 times a power of ten apart."""
    numbers = [value for value in values if value is not None] or [0.0]
    numbers += [0.0] if zero else []
    low, high = min(numbers), max(numbers)
    if high - low <= max(1e-9 * abs(low), 1e-9 * abs(high), 1e-300):
        high = low + (abs(low) if abs(low) > 1e-300 else 1.0)
    step = _round_step((high - low) / count)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = [float(f"{i * step:.12g}") for i in range(first, last + 1)]
    return Axis(label, ticks, ticks[0], ticks[-1], text)


def any_number(values: Sequence[float | None]) -> bool:
    """Whether there is anything to draw."""
    return any(value is not None for value in values)


def _round_step(step: float) -> float:
    power = 10.0 ** math.floor(math.log10(step))
    return power * min((m for m in (1, 2, 5, 10) if m * power >= step * (1 - 1e-9)), default=10)


def _last(values: Sequence[float | None]) -> float:
    return next(value for value in reversed(values) if value is not None)


def _text(x: float, y: float, text: str, kind: str) -> Markup:
    return Markup('<text class="{}" x="{:.1f}" y="{:.1f}">{}</text>').format(kind, x, y, text)


# ----------------------------------------------------------------------
# The curves of a run: training, false negatives, accuracy under attack, similarities.

Line = Mapping[str, Any]
Points = tuple[list[float], list[float | None]]
_MOST_POINTS = 240  # more than a screen shows


def loss_curve(lines: Sequence[Line]) -> Chart | None:
    """Loss over epochs."""
    x, y = _curve(lines, "loss")
    if not any_number(y):
        return None
    return Chart(
        f"Loss over epochs, from {plain(_first(y))} to {plain(_first(y[::-1]))}.",
        linear_axis("epoch", x),
        linear_axis("loss", y, zero=False),
        [Series("", x, y)],
    )


def false_negative_curves(lines: Sequence[Line], removal: Tree) -> Chart | None:
    """Share of pairs flagged as false negatives, precision and recall over epochs."""
    names = {
        "precision": ("precision", "a"),
        "recall": ("recall", "b"),
        "removed": ("flagged", "c"),
    }
    curves = {name: _curve(lines, name) for name in names}
    drawn = {name: curve for name, curve in curves.items() if any_number(curve[1])}
    if not any(value for _, y in drawn.values() for value in y):
        return None
    chance = number(removal.get("chance"))
    values = [value for _, y in drawn.values() for value in y]
    return Chart(
        "Share of the pairs that is flagged as false negatives, precision and recall over epochs.",
        linear_axis("epoch", next(iter(drawn.values()))[0]),
        _share_axis("share of pairs", [*values, chance]),
        [
            Series(label, *drawn[name], tone=tone)
            for name, (label, tone) in names.items()
            if name in drawn
        ],
        levels=[] if chance is None else [("precision of a blind guess", chance)],
    )


def side_curves(lines: Sequence[Line]) -> list[tuple[str, str, Chart]]:
    """(what, title, small chart) of what is logged beside the loss, where it is."""
    titles = {
        "alignment": "Alignment",
        "uniformity": "Uniformity",
        "margin": "Margin between classes",
        "effective_rank": "Effective rank",
        "lr": "Learning rate",
        "clips_per_second": "Clips per second",
    }
    curves = {name: _curve(lines, name) for name in titles}
    return [
        (
            name,
            titles[name],
            Chart(
                f"{titles[name]} over epochs.",
                linear_axis("epoch", x),
                linear_axis("", y, count=3),
                [Series("", x, y, tone="c")],
                height=180,
            ),
        )
        for name, (x, y) in curves.items()
        if any_number(y)
    ]


def class_similarity_curves(lines: Sequence[Line]) -> Chart | None:
    """Mean similarity of pairs of one class and of pairs of two over epochs."""
    names = {
        "same_class_similarity": ("same class", "a"),
        "other_class_similarity": ("other class", "b"),
    }
    drawn = {name: _curve(lines, name) for name in names}
    drawn = {name: curve for name, curve in drawn.items() if any_number(curve[1])}
    if not drawn:
        return None
    values = [value for _, y in drawn.values() for value in y]
    return Chart(
        "Mean cosine similarity of two videos of one class and of two classes over epochs.",
        linear_axis("epoch", next(iter(drawn.values()))[0]),
        linear_axis("cosine similarity", values),
        [Series(names[name][0], *curve, tone=names[name][1]) for name, curve in drawn.items()],
    )


def attack_curve(
    name: str,
    accuracies: Tree,
    survival: Tree,
    *,
    clean: float | None,
    clips: int | None,
    chance: float | None,
) -> Chart | None:
    """Accuracy and survival against the budget eps; the clean accuracy stands at 0.

    The budgets are spread by log(1 + eps / smallest eps): 0 has a place, small ones have room.
    """
    points = [(0.0, "0", clean), *by_budget(accuracies)]
    budgets = [eps for eps, _, _ in points]
    positive = [eps for eps in budgets if eps > 0]
    if not positive:
        return None
    notes = [
        f"ε = {key}: {percent(value)}, 95 %: {interval_text(value, clips)}"
        for _, key, value in points
    ]
    lines = [
        Series(
            "accuracy",
            budgets,
            [value for _, _, value in points],
            band=[interval(value, clips) for _, _, value in points],
            notes=notes,
        )
    ]
    if survival:
        kept = [(0.0, "0", 1.0), *by_budget(survival)]
        lines.append(
            Series(
                "survival",
                [eps for eps, _, _ in kept],
                [value for _, _, value in kept],
                tone="b",
                look="dashed",
                notes=[f"ε = {key}: {percent(value)} survive" for _, key, value in kept],
            )
        )
    in_255 = all(key.endswith("/255") for key in accuracies)
    least = min(positive)
    return Chart(
        f"Accuracy under {attack_title(name)} against the budget; the table has the numbers.",
        Axis(
            "ε, in 1/255 of the pixel range" if in_255 else "ε, norm over the whole clip",
            budgets,
            0.0,
            max(positive),
            scale=lambda eps: math.log1p(eps / least),
        ),
        _share_axis("share of clips", [value for line in lines for value in _extent(line)]),
        lines,
        levels=[] if chance is None else [("chance", chance)],
    )


def frame_curve(profiles: Tree) -> Chart | None:
    """Size of the perturbation in each frame, a line a budget."""
    lines = {eps: [number(value) for value in row] for eps, row in profiles.items()}
    lines = {eps: row for eps, row in lines.items() if any_number(row)}
    if not lines:
        return None
    longest = max(map(len, lines.values()))
    return Chart(
        "Root mean square of the perturbation in each frame of the clip, by budget.",
        linear_axis("frame", [float(i) for i in range(longest)]),
        linear_axis("RMS, 1/255", [value for row in lines.values() for value in row]),
        [
            Series(f"ε {eps}", [float(i) for i in range(len(row))], row, tone="abcd"[i % 4])
            for i, (eps, row) in enumerate(lines.items())
        ],
    )


def similarity_histogram(histogram: Tree) -> Chart | None:
    """Distribution of cosine similarity of same-class and of other-class pairs, as outlines."""
    edges = [value for value in map(number, histogram.get("edges", ())) if value is not None]
    names = {
        "same_class": ("same class", "a", "right"),
        "other_class": ("other class", "b", "left"),
    }
    shares = {name: _shares(histogram.get(name, ())) for name in names}
    shares = {name: y for name, y in shares.items() if y and len(edges) == len(y) + 1}
    if not shares:
        return None
    used = [i for y in shares.values() for i, share in enumerate(y) if share]
    first, last = max(0, min(used) - 1), min(len(edges) - 2, max(used) + 1)  # and one bin beside
    edges = edges[first : last + 2]
    shares = {name: y[first : last + 1] for name, y in shares.items()}
    x = [edge for edge in edges for _ in range(2)]
    outlines = {
        name: [0.0, *(share for share in y for _ in range(2)), 0.0] for name, y in shares.items()
    }
    return Chart(
        "Histogram of the similarity of same-class and of other-class pairs of test videos.",
        linear_axis("cosine similarity", edges, zero=False),
        _share_axis("share of pairs", [share for y in shares.values() for share in y]),
        [
            Series(
                *(label, x, y, tone),
                look="filled",
                band=[(0.0, share) for share in y],
                label_at=y.index(max(y)),
                label_side=side,
            )
            for name, (label, tone, side) in names.items()
            if (y := outlines.get(name))
        ],
    )


def _extent(line: Series) -> list[float | None]:
    """Values and upper ends of the band."""
    return [*line.y, *(pair[1] for pair in line.band if pair is not None)]


def _shares(counts: Sequence[object]) -> list[float]:
    amounts = [number(count) or 0.0 for count in counts]
    total = sum(amounts)
    return [amount / total for amount in amounts] if total else []


def _share_axis(label: str, values: Sequence[float | None]) -> Axis:
    return linear_axis(label, values, text=lambda share: f"{100 * share:g}\u202f%")


def _curve(lines: Sequence[Line], name: str) -> Points:
    """`name` over the epochs done, averaged over neighbouring lines where there are many."""
    x, y = [float(line["epoch"]) for line in lines], [number(line.get(name)) for line in lines]
    size = math.ceil(len(x) / _MOST_POINTS) or 1
    starts = range(0, len(x), size)
    return (
        [_mean(x[i : i + size]) or 0.0 for i in starts],
        [_mean(y[i : i + size]) for i in starts],
    )


def _mean(values: Sequence[float | None]) -> float | None:
    numbers = [value for value in values if value is not None]
    return sum(numbers) / len(numbers) if numbers else None


def _first(values: Sequence[float | None]) -> float | None:
    return next((value for value in values if value is not None), None)
