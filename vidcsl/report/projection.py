"""Where the classes lie among the features: one small picture a class, all on one plane."""

from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from vidcsl.errors import UserError

_SIDE, _MARGIN = 160.0, 8.0
_MOST_POINTS, _MOST_CLASSES = 600, 12  # more than a small picture, and a page, can show


@dataclass(frozen=True)
class Projection:
    """A picture for each class: its name, how many videos it has, and the plane with them lit."""

    panels: tuple[tuple[str, int, Markup], ...]
    classes: int
    shown: float


def read_projection(path: Path) -> Projection | None:
    """The pictures of `artifacts/projection.npz`; None where it is absent or has no class.

    Raises:
        UserError: the file is damaged or lacks an array.
    """
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as stored:
            points, labels = stored["points"], stored["labels"].astype(str)
            shown = float(stored["shown"])
    except (OSError, ValueError, EOFError, BadZipFile, KeyError) as error:
        raise UserError(f"cannot read {path}: {error}; run the evaluation again") from error
    if points.ndim != 2 or points.shape != (len(labels), 2):
        raise UserError(f"{path}: points {points.shape} must be [{len(labels)}, 2]")
    return _draw(points, labels, shown) if len(labels) else None


def _draw(points: NDArray[np.float32], labels: NDArray[np.str_], shown: float) -> Projection:
    reach = max(float(np.abs(np.nan_to_num(points)).max()), 1e-6)
    places = _SIDE / 2 + np.nan_to_num(points) / reach * (_SIDE / 2 - _MARGIN)  # [n, 2]
    names, counts = np.unique(labels, return_counts=True)
    # The classes with most videos, in the order of their names.
    chosen = np.sort(np.argsort(-counts, kind="stable")[:_MOST_CLASSES])
    panels = tuple(
        (str(names[i]), int(counts[i]), _panel(places, labels == names[i], str(names[i])))
        for i in chosen
    )
    return Projection(panels, len(names), shown)


def _panel(places: NDArray[np.floating], lit: NDArray[np.bool_], name: str) -> Markup:
    svg = Markup(
        '<svg viewBox="0 0 {0:g} {0:g}" role="img" aria-label="Features of {1} among all others.">'
        '<path class="dots" d="{2}"/><path class="dots lit" d="{3}"/></svg>'
    )
    return svg.format(_SIDE, name, _dots(places[~lit]), _dots(places[lit]))


def _dots(places: NDArray[np.floating]) -> str:
    """Lines of no length, which the style sheet gives round ends; evenly thinned where many."""
    kept = np.unique(np.linspace(0, len(places) - 1, min(len(places), _MOST_POINTS)).astype(int))
    return "".join(f"M{x:.1f} {_SIDE - y:.1f}h0" for x, y in places[kept])
