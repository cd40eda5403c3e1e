"""A map of the unit sphere of features: their mean direction in the middle, rings about it.

Rings stand at whole multiples of `STEP` degrees, so that maps of different runs compare.
"""

from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

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
