"""A page that shows corruptions on a clip, moving, each at each severity."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from vidcsl.io import replacing
from vidcsl.report.page import templates
from vidcsl.report.pictures import player

# Half the size of a film that hides its coding; strong noise would make the page too large.
_QUALITY = 24


@dataclass(frozen=True)
class Exhibit:
    """One corruption.

    Args:
        name, category, note: words about it.
        films: for each severity what it stands for, and the frames, uint8 `[T, H, W, 3]`.
    """

    name: str
    category: str
    note: str
    films: list[tuple[str, NDArray[np.uint8]]]

    def players(self) -> list[tuple[str, Markup]]:
        """For each severity its words and its film, which starts when it comes into view."""
        return [
            (words, _film(frames, f"{self.name}, severity {severity}"))
            for severity, (words, frames) in enumerate(self.films, start=1)
        ]


def write_gallery(
    path: Path,
    suites: Iterable[tuple[str, list[Exhibit]]],
    *,
    title: str,
    clean: NDArray[np.uint8],
) -> None:
    """Write the page, self-contained, whole or not at all.

    Args:
        path: where to.
        suites: headings with what is shown under them.
        title: of the page.
        clean: the clip itself, uint8 `[T, H, W, 3]`.
    """
    page = (
        templates()
        .get_template("gallery.html.j2")
        .render(title=title, clean=_film(clean, "the clip without corruption"), suites=list(suites))
    )
    with replacing(path) as partial:
        partial.write_text(page, encoding="utf-8")


def _film(frames: NDArray[np.uint8], label: str) -> Markup:
    return player(frames, label=label, quality=_QUALITY, autoplay=False)
