"""Features on a sphere and on a map."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from vidcsl.errors import UserError
from vidcsl.report.pictures import has_array, read_arrays

# ----------------------------------------------------------------------
# A map of the unit sphere of features: their mean direction in the middle, rings about it.
#
# Rings stand at whole multiples of `STEP` degrees, so that maps of different runs compare.

STEP = 15  # degrees

_RING = Markup('<ellipse class="ring" cx="{0:g}" cy="{0:g}" rx="{1:.1f}" ry="{1:.1f}"/>')
_DEGREES = Markup('<text class="ring" x="{:.1f}" y="{:.1f}">{}°</text>')


@dataclass(frozen=True)
class SphereMap:
    """A square picture of the sphere out to its last ring.

    Args:
        horizon: angle of the last ring, degrees.
        side, margin: of the picture and around the last ring, in its own units.
    """

    horizon: int
    side: float
    margin: float

    def places(self, angles: NDArray[np.floating]) -> NDArray[np.float64]:
        """Where `angles` `[n, 2]`, degrees, upwards, lie in the picture, downwards."""
        return self.side / 2 + _finite(angles) * np.array([1, -1]) * self._scale

    def rings(self) -> Markup:
        """The rings alone."""
        found = (_RING.format(self.side / 2, ring * self._scale) for ring in self._angles)
        return Markup("").join(found)

    def degrees(self) -> Markup:
        """What the rings say, on the right of the middle."""
        found = (
            _DEGREES.format(self.side / 2 + ring * self._scale, self.side / 2, ring)
            for ring in self._angles
        )
        return Markup("").join(found)

    @property
    def _angles(self) -> range:
        return range(STEP, self.horizon + 1, STEP)

    @property
    def _scale(self) -> float:
        return (self.side / 2 - self.margin) / self.horizon


def horizon(angles: NDArray[np.floating]) -> int:
    """The first ring within which all `angles` `[n, 2]` lie, degrees."""
    farthest = float(np.linalg.norm(_finite(angles), axis=1).max(initial=0))
    return max(STEP, STEP * int(np.ceil(farthest / STEP - 1e-6)))


def _finite(angles: NDArray[np.floating]) -> NDArray[np.float64]:
    return np.nan_to_num(np.asarray(angles, float))


# ----------------------------------------------------------------------
# All test videos on the sphere: touch one, and its class and its nearest neighbours light up.

_GRID_SIDE, _MARGIN = 480.0, 30.0
_MOST = 800  # points that a page can bear

_DOT = Markup(
    '<circle id="v{}" cx="{:.1f}" cy="{:.1f}" r="4" data-class="{}" data-near="{}" data-name="{}"/>'
)
# A neighbour that is not drawn still counts: its class is written down.
_UNSEEN = Markup('<desc id="v{}" data-class="{}"></desc>')
_MAP = Markup(
    '<svg class="map" viewBox="0 0 {0:g} {0:g}" role="img" aria-label="Test videos on the unit '
    'sphere of their features.">{1}<g class="links"></g>{2}</svg>'
)


def neighbour_map(
    angles: NDArray[np.floating],
    *,
    labels: Sequence[str],
    neighbours: NDArray[np.int_],
    videos: Sequence[str],
) -> Markup:
    """The picture; the page's script makes it answer.

    Args:
        angles: `[n, 2]`, degrees, where the videos lie; evenly thinned where there are many.
        labels, videos: class and name of each.
        neighbours: `[n, k]`, the k nearest other videos of each, nearest first.
    """
    shown = np.unique(np.linspace(0, len(angles) - 1, min(len(angles), _MOST)).astype(int))
    sphere = SphereMap(horizon(angles), _GRID_SIDE, _MARGIN)
    places = sphere.places(angles)
    dots = [
        _DOT.format(i, *places[i], labels[i], " ".join(map(str, neighbours[i])), videos[i])
        for i in shown.tolist()
    ]
    unseen = np.setdiff1d(neighbours[shown], shown).tolist()
    beside = Markup("").join(_UNSEEN.format(i, labels[i]) for i in unseen)
    return _MAP.format(
        _GRID_SIDE, beside + sphere.rings(), Markup("\n").join(dots) + sphere.degrees()
    )


# ----------------------------------------------------------------------
# Where the classes lie among the features: one small picture a class, all of the same sphere.

_SIDE, _PROJECTION_MARGIN = 160.0, 8.0
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
    sphere = SphereMap(horizon(angles), _SIDE, _PROJECTION_MARGIN)
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
