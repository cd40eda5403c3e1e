"""Test features on the unit sphere: one map that answers to the pointer, one small map a class.

A map shows the sphere from above the features' mean direction: how far a point is from the middle
is the angle to that direction, which is true; around it lie the two directions along which the
features differ most. Rings stand at multiples of 15 degrees, so that maps of two runs compare.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vidcsl.errors import UserError
from vidcsl.report.charts import COLOURS, Row, Spec
from vidcsl.report.summary import has_array, read_arrays

RING = 15  # degrees between rings
_MOST_VIDEOS, _MOST_AROUND, _MOST_CLASSES = 800, 200, 12  # that a page can bear


@dataclass(frozen=True)
class FeatureMaps:
    """The maps of a run.

    Attributes:
        neighbours: the map of all videos; None where the run kept no neighbours.
        panels: for the classes with most videos, in the order of their names: name, number of
            videos, and a small map on which they stand out.
        classes: the names of all classes.
        shown: ratio of the features' variance that lies in the map's two directions.
        horizon: angle of the last ring, degrees.
    """

    neighbours: Spec | None
    panels: tuple[tuple[str, int, Spec], ...]
    classes: tuple[str, ...]
    shown: float
    horizon: int


def read_maps(path: Path) -> FeatureMaps | None:
    """The maps of `artifacts/projection.npz`; None where it is absent or empty.

    Raises:
        UserError: the file is damaged or lacks an array.
    """
    if not path.is_file():
        return None
    angles, classes, shown = read_arrays(path, "angles", "labels", "shown")
    if angles.ndim != 2 or angles.shape != (len(classes), 2):
        raise UserError(f"{path}: angles {angles.shape} must be [{len(classes)}, 2]")
    if not len(classes):
        return None
    angles, labels = np.nan_to_num(np.asarray(angles, float)), classes.astype(str)
    horizon = last_ring(angles)
    neighbours = None
    if has_array(path, "neighbours"):  # runs of earlier versions kept none
        nearest, videos = read_arrays(path, "neighbours", "videos")
        neighbours = neighbour_map(angles, labels, nearest.astype(int), videos.astype(str), horizon)
    names, counts = np.unique(labels, return_counts=True)
    most = np.sort(np.argsort(-counts, kind="stable")[:_MOST_CLASSES])
    panels = [
        (str(names[i]), int(counts[i]), class_map(angles, labels == names[i], names[i], horizon))
        for i in most
    ]
    return FeatureMaps(neighbours, tuple(panels), tuple(names.tolist()), float(shown), horizon)


def last_ring(angles: NDArray[np.floating]) -> int:
    """The first ring within which all `angles` `[n, 2]` lie, degrees."""
    farthest = float(np.linalg.norm(np.nan_to_num(angles), axis=1).max(initial=0))
    return max(RING, RING * int(np.ceil(farthest / RING - 1e-6)))


def neighbour_map(
    angles: NDArray[np.floating],
    labels: NDArray[np.str_],
    neighbours: NDArray[np.int_],
    videos: NDArray[np.str_],
    horizon: int,
) -> Spec:
    """All videos: the pointer lights up a video's class and draws lines to its neighbours.

    Args:
        angles: `[n, 2]`, degrees; evenly thinned where there are many.
        labels, videos: class and name of each, `[n]`.
        neighbours: `[n, k]`, the k nearest other videos of each on the whole sphere, nearest first.
        horizon: angle of the last ring, degrees.
    """
    shown = _thinned(len(angles), _MOST_VIDEOS)
    points, links = [], []
    for i in shown.tolist():
        near = labels[neighbours[i]]
        of_class = near == labels[i]
        point = {**_point(angles[i]), "video": str(videos[i]), "class": str(labels[i])}
        facts = {"found": f"{of_class.sum()} of {len(near)}", "near": ", ".join(near)}
        points.append({**point, "id": i, **facts})
        for j in np.intersect1d(neighbours[i], shown).tolist():
            x2, y2 = _point(angles[j]).values()
            end = {"x2": x2, "y2": y2, "same": bool(labels[i] == labels[j])}
            links.append({"id": i, **_point(angles[i]), **end})
    video: Spec = {"name": "video", "select": {"type": "point", "fields": ["id"]}}
    lit: Spec = {"name": "lit", "select": {"type": "point", "fields": ["class"]}}
    for each in (video, lit):
        each["select"] |= {"on": "pointerover", "nearest": True}
    # The list serves those who cannot hit a point: fingers, keyboards, screen readers.
    names = np.unique(labels).tolist()
    lit["bind"] = {
        "input": "select",
        "name": "Highlight the class ",
        "options": [None, *names],
        "labels": ["none", *names],
    }
    chosen = {"param": "lit", "empty": False}
    dots = {
        "data": {"values": points},
        "mark": {"type": "point", "filled": True, "size": 55},
        "params": [video, lit],
        "encoding": {
            "color": {"condition": {**chosen, "value": COLOURS[0]}, "value": "var(--soft)"},
            "opacity": {"condition": {**chosen, "value": 1}, "value": 0.4},
            "tooltip": [
                {"field": "video", "type": "nominal"},
                {"field": "class", "type": "nominal"},
                {"field": "found", "type": "nominal", "title": "nearest of its class"},
                {"field": "near", "type": "nominal", "title": "classes of the nearest"},
            ],
        },
    }
    same = {"test": "datum.same"}
    lines = {
        "data": {"values": links},
        "transform": [{"filter": {"param": "video", "empty": False}}],
        "mark": {"type": "rule", "strokeWidth": 1.5, "aria": False},
        "encoding": {
            "x2": {"field": "x2"},
            "y2": {"field": "y2"},
            "color": {"condition": {**same, "value": COLOURS[0]}, "value": COLOURS[1]},
            "strokeDash": {"condition": {**same, "value": [1, 0]}, "value": [4, 3]},
        },
    }
    names_of_rings = [{"x": r, "y": 0, "degrees": f"{r}°"} for r in range(RING, horizon + 1, RING)]
    degrees = {
        "data": {"values": names_of_rings},
        "mark": {"type": "text", "fontSize": 11, "dy": -6, "aria": False},
        "encoding": {"text": {"field": "degrees", "type": "nominal"}},
    }
    return _sphere(
        "Test videos on the unit sphere of their features.",
        [lines, dots, degrees],
        horizon=horizon,
        side=460,
    )


def class_map(
    angles: NDArray[np.floating], lit: NDArray[np.bool_], name: str, horizon: int
) -> Spec:
    """A small map on which one class stands out.

    Args:
        angles: `[n, 2]`, degrees.
        lit: which videos are of the class, `[n]`.
        name: of the class.
        horizon: angle of the last ring, degrees.
    """
    layers = []
    for part, colour, opacity in ((~lit, "var(--soft)", 0.3), (lit, COLOURS[0], 0.9)):
        kept = angles[part][_thinned(int(part.sum()), _MOST_AROUND)]
        mark = {"type": "point", "filled": True, "size": 12, "color": colour, "opacity": opacity}
        rows = [_point(each) for each in kept]
        layers.append({"data": {"values": rows}, "mark": {**mark, "aria": False}})
    return _sphere(f"Features of {name} among all others.", layers, horizon=horizon, side=130)


def _sphere(description: str, layers: list[Spec], *, horizon: int, side: int) -> Spec:
    """Layers of points `x`, `y` in degrees over the rings, on a square that the page may scale."""
    scale = {"domain": [-horizon, horizon], "nice": False, "zero": False}
    # Vega-Lite has no circles in units of the axes, so that each ring is a curve of 5° steps.
    rings: Spec = {
        "data": {"values": [{"ring": ring} for ring in range(RING, horizon + 1, RING)]},
        "transform": [
            {"calculate": "sequence(0, 361, 5)", "as": "t"},
            {"flatten": ["t"]},
            {"calculate": "datum.ring * cos(datum.t * PI / 180)", "as": "x"},
            {"calculate": "datum.ring * sin(datum.t * PI / 180)", "as": "y"},
        ],
        "mark": {"type": "line", "color": "var(--rule)", "strokeWidth": 1, "aria": False},
        "encoding": {
            "detail": {"field": "ring", "type": "nominal"},
            "order": {"field": "t", "type": "quantitative"},
        },
    }
    position = {"type": "quantitative", "axis": None, "scale": scale}
    return {
        "width": side,
        "height": side,
        "description": description,
        "encoding": {"x": {"field": "x", **position}, "y": {"field": "y", **position}},
        "layer": [rings, *layers],
    }


def _point(angles: NDArray[np.floating]) -> Row:
    return {"x": round(float(angles[0]), 1), "y": round(float(angles[1]), 1)}


def _thinned(count: int, most: int) -> NDArray[np.int_]:
    """At most so many of `count` indices, evenly spread."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(int))
