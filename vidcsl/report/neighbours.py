"""A page on what a teacher flags: how often rightly, of which classes, and pairs to look at."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vidcsl.io import replacing
from vidcsl.report.charts import Axis, Chart, Series, linear_axis
from vidcsl.report.page import templates
from vidcsl.report.pictures import Pair
from vidcsl.report.summary import percent


def write_neighbours(
    path: Path, found: Mapping[str, Any], pairs: Sequence[tuple[Pair, str]], *, title: str
) -> None:
    """Write the page, self-contained, whole or not at all.

    Args:
        path: where to.
        found: what `neighbours.json` holds.
        pairs: flagged pairs, each with what is known of it: right, wrong, or nothing.
        title: of the page.
    """
    page = (
        templates()
        .get_template("neighbours.html.j2")
        .render(
            title=title,
            found=found,
            pairs=[pair for pair, _ in pairs],
            verdicts=[verdict for _, verdict in pairs],
            chart=_chart(found),
            percent=percent,
        )
    )
    with replacing(path) as partial:
        partial.write_text(page, encoding="utf-8")


def _chart(found: Mapping[str, Any]) -> Any:
    curve = found["curve"]
    if not curve:
        return None
    shares = [point["share"] for point in curve]
    x = Axis("each video's nearest share of the list", shares, shares[0], shares[-1], percent)
    lines = [
        Series(name, shares, [point[name] for point in curve], tone=tone)
        for name, tone in (("precision", "a"), ("recall", "b"))
    ]
    y = linear_axis("share of pairs", [0.0, 1.0], text=percent)
    return Chart(
        "Precision and recall of each video's nearest shares.",
        x,
        y,
        lines,
        levels=[("precision of a blind guess", found["chance"])],
    ).svg()
