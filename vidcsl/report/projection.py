"""Where the classes lie among the features: one small picture a class, all of the same sphere."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from vidcsl.errors import UserError
from vidcsl.report.artifacts import has_array, read_arrays
from vidcsl.report.neighbours import neighbour_map
from vidcsl.report.sphere import SphereMap, horizon

_SIDE, _MARGIN = 160.0, 8.0
_MOST_POINTS, _MOST_CLASSES = 600, 12  # more than a small picture, and a page, can show


@dataclass(frozen=True)
class Projection:
    """A picture for each class: its name, how many videos it has, and the sphere with them lit.

    `classes` are all of them, `shown` is the share of the variance in the map's two directions,
    `horizon` the angle of its last ring in degrees, `map` the picture of all videos that answers
    to a touch.
    """

    panels: tuple[tuple[str, int, Markup], ...]
    classes: tuple[str, ...]
    shown: float
    horizon: int
    map: Markup | None = None


def read_projection(path: Path) -> Projection | None:
    """The pictures of `artifacts/projection.npz`; None where it is absent or has no class.

    Raises:
        UserError: the file is damaged or lacks an array.
    """
    if not path.is_file():
        return None
    angles, found, shown = read_arrays(path, "angles", "labels", "shown")
    if angles.ndim != 2 or angles.shape != (len(found), 2):
        raise UserError(f"{path}: angles {angles.shape} must be [{len(found)}, 2]")
    if not len(found):
        return None
    labels = found.astype(str)
    return _draw(angles, labels, float(shown), _map(path, angles, labels))


def _map(path: Path, angles: NDArray[Any], labels: NDArray[np.str_]) -> Markup | None:
    """The map of neighbours; runs of earlier versions kept none."""
    if not has_array(path, "neighbours"):
        return None
    neighbours, videos = read_arrays(path, "neighbours", "videos")
    return neighbour_map(
        angles,
        labels=labels.tolist(),
        neighbours=neighbours.astype(int),
        videos=videos.astype(str).tolist(),
    )


def _draw(
    angles: NDArray[Any], labels: NDArray[np.str_], shown: float, touched: Markup | None
) -> Projection:
    sphere = SphereMap(horizon(angles), _SIDE, _MARGIN)
    places, rings = sphere.places(angles), sphere.rings()
    names, counts = np.unique(labels, return_counts=True)
    # The classes with most videos, in the order of their names.
    chosen = np.sort(np.argsort(-counts, kind="stable")[:_MOST_CLASSES])
    panels = tuple(
        (str(names[i]), int(counts[i]), _panel(places, labels == names[i], str(names[i]), rings))
        for i in chosen
    )
    return Projection(panels, tuple(names.tolist()), shown, sphere.horizon, touched)


def _panel(
    places: NDArray[np.floating], lit: NDArray[np.bool_], name: str, rings: Markup
) -> Markup:
    svg = Markup(
        '<svg viewBox="0 0 {0:g} {0:g}" role="img" aria-label="Features of {1} among all others.">'
        '{2}<path class="dots" d="{3}"/><path class="dots lit" d="{4}"/></svg>'
    )
    return svg.format(_SIDE, name, rings, _dots(places[~lit]), _dots(places[lit]))


def _dots(places: NDArray[np.floating]) -> str:
    """Lines of no length, which the style sheet gives round ends; evenly thinned where many."""
    kept = np.unique(np.linspace(0, len(places) - 1, min(len(places), _MOST_POINTS)).astype(int))
    return "".join(f"M{x:.1f} {y:.1f}h0" for x, y in places[kept])
