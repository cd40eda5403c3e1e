"""Small line charts as inline SVG; their colours and type come from the page's style sheet.

Drawn directly rather than by a plotting library: the text stays text in the page's font, one
picture serves light and dark pages, and the same numbers always give the same bytes.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

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
