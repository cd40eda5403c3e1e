"""The curves of a run: training, false negatives, accuracy under attack, similarities."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

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
from vidcsl.report.svg import Axis, Chart, Series, any_number, linear_axis

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
