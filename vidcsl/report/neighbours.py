"""All test videos on one plane: touch one, and its class and its nearest neighbours light up."""

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

_SIDE, _MARGIN = 480.0, 14.0
_MOST = 800  # points that a page can bear

_DOT = Markup(
    '<circle id="v{}" cx="{:.1f}" cy="{:.1f}" r="4" data-class="{}" data-near="{}" data-name="{}"/>'
)
# A neighbour that is not drawn still counts: its class is written down.
_UNSEEN = Markup('<desc id="v{}" data-class="{}"></desc>')
_MAP = Markup(
    '<svg class="map" viewBox="0 0 {0:g} {0:g}" role="img" aria-label="Test videos by the two main '
    'directions of their features.">{1}<g class="links"></g>{2}</svg>'
)


def neighbour_map(
    points: NDArray[np.floating],
    *,
    labels: Sequence[str],
    neighbours: NDArray[np.int_],
    videos: Sequence[str],
) -> Markup:
    """The picture; the page's script makes it answer.

    Args:
        points: `[n, 2]`, where the videos lie; evenly thinned where there are many.
        labels, videos: class and name of each.
        neighbours: `[n, k]`, the k nearest other videos of each, nearest first.
    """
    shown = np.unique(np.linspace(0, len(points) - 1, min(len(points), _MOST)).astype(int))
    finite = np.nan_to_num(np.asarray(points, float))
    middle = (finite.max(axis=0) + finite.min(axis=0)) / 2
    reach = max(float(np.abs(finite - middle).max()), 1e-6)
    places = _SIDE / 2 + (finite - middle) / reach * (_SIDE / 2 - _MARGIN) * np.array([1, -1])
    dots = [
        _DOT.format(i, *places[i], labels[i], " ".join(map(str, neighbours[i])), videos[i])
        for i in shown.tolist()
    ]
    unseen = np.setdiff1d(neighbours[shown], shown).tolist()
    beside = [_UNSEEN.format(i, labels[i]) for i in unseen]
    return _MAP.format(_SIDE, Markup("").join(beside), Markup("\n").join(dots))
