"""What readers share whose libraries conceal damage: PyAV decodes the same frames beside them."""

from abc import abstractmethod

import numpy as np
from numpy.typing import NDArray

from vidcsl.data.readers.pyav import PyavReader
from vidcsl.data.readers.reader import Pixels, Reader, Source

# Grey levels, mean of a frame. Libraries interpolate and round colours differently, by less.
_FAR = 3.5


class CheckedReader(Reader):
    """Damage that PyAV finds in the frames is an error; where its frames are others, they count.

    They are others where a library trusts time stamps that damage has changed, decodes through
    damage that PyAV jumps over, or does not know what range the colours have. The reader is then
    called `pyav`.
    """

    def __init__(self, source: Source, *, short_side: int | None = None) -> None:
        super().__init__(source)
        self._strict = PyavReader(source, short_side=short_side)
        self.num_frames, self.fps = self._strict.num_frames, self._strict.fps
        self.height, self.width = self._strict.height, self._strict.width

    def close(self) -> None:
        """Let go of the file."""
        super().close()
        self._strict.close()

    def _decode(self, indices: NDArray[np.int64]) -> Pixels:
        sound = self._strict.read(indices)
        if self.name == self._strict.name:
            return sound
        frames = self._unchecked(indices)
        if frames.shape == sound.shape and _farthest(frames, sound) <= _FAR:
            return frames
        self.name = self._strict.name  # type: ignore[misc]  # of this file alone
        return sound

    @abstractmethod
    def _unchecked(self, indices: NDArray[np.int64]) -> Pixels:
        """The frames as the library gives them."""


def _farthest(frames: Pixels, others: Pixels) -> float:
    """Mean difference of the two frames [T, H, W, 3] that differ most."""
    return float(np.abs(frames.astype(np.int16) - others).mean(axis=(1, 2, 3)).max())
