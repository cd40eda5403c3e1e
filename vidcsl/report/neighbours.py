"""A page on what a teacher flags: how often rightly, of which classes, and pairs to look at."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vidcsl.io import replacing
from vidcsl.report.charts import line_chart
from vidcsl.report.page import script, style_sheet, templates
from vidcsl.report.pictures import PairPicture


def write_neighbours(
    path: Path, found: Mapping[str, Any], pairs: Sequence[tuple[PairPicture, str]], *, title: str
) -> None:
    """Write the page, self-contained, whole or not at all.

    Args:
        path: where to.
        found: what `neighbours.json` holds.
        pairs: flagged pairs, each with what is known of it: right, wrong, or nothing.
        title: of the page.
    """
    points = [
        {"x": 100 * point["share"], "y": point[name], "series": name}
        for name in ("precision", "recall")
        for point in found["curve"]
    ]
    chart = None
    if points:
        chart = line_chart(
            points,
            "Precision and recall if the nearest of each video were flagged.",
            x="nearest % of the list",
            y="fraction of pairs",
            of="curve",
            per_cent=True,
            levels=[("precision of random flags", found["chance"])],
        )
    page = templates().get_template("neighbours.html.j2")
    text = page.render(
        title=title,
        found=found,
        pairs=pairs,
        chart=chart,
        style=style_sheet(),
        script=script(),
    )
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")
