"""All test videos on the sphere: touch one, and its class and its nearest neighbours light up."""

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from vidcsl.report.sphere import SphereMap, horizon

_SIDE, _MARGIN = 480.0, 30.0
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
    sphere = SphereMap(horizon(angles), _SIDE, _MARGIN)
    places = sphere.places(angles)
    dots = [
        _DOT.format(i, *places[i], labels[i], " ".join(map(str, neighbours[i])), videos[i])
        for i in shown.tolist()
    ]
    unseen = np.setdiff1d(neighbours[shown], shown).tolist()
    beside = Markup("").join(_UNSEEN.format(i, labels[i]) for i in unseen)
    return _MAP.format(_SIDE, beside + sphere.rings(), Markup("\n").join(dots) + sphere.degrees())
