"""decord, which seeks to the clip and decodes straight to the size asked for, on one thread."""

import importlib.util
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vidcsl.data.readers.checked import CheckedReader
from vidcsl.data.readers.reader import Pixels, Source
from vidcsl.errors import UserError, VideoError


class DecordError(VideoError):
    """What decord itself could not read; no other fault, such as time that is up."""


class DecordReader(CheckedReader):
    """decord conceals damage, so PyAV decodes the same frames beside it.

    Arguments and errors as for `PyavReader`.
    """

    name = "decord"

    def __init__(self, source: Source, *, short_side: int | None = None) -> None:
        super().__init__(source, short_side=short_side)
        self._decord = _import_decord()
        self._video = self._open()
        # decord's seeks may land some frames off in AVI files, its count includes packets without
        # a frame there, and its batches fail where it takes padding for a colour channel. Such
        # files are decoded in order from the start.
        self._in_order = (
            self._strict.container == "avi"
            or len(self._video) != self.num_frames
            or _rows_look_whole_when_padded(self.width)
        )

    def _open(self) -> Any:
        with self._errors():
            return self._decord.VideoReader(
                self.source.as_argument(),
                width=self.width,
                height=self.height,
                num_threads=1,
                fault_tol=1e-9,
            )

    @classmethod
    def check_installed(cls) -> None:
        """Raise UserError where decord is not there or does not load."""
        _import_decord()

    def _unchecked(self, indices: NDArray[np.int64]) -> Pixels:
        if not self._in_order:
            # Where its jumps end in a doubt, a walk from the start may still give every frame.
            with suppress(DecordError), self._errors():
                return self._video.get_batch(indices).asnumpy()
        with self._errors():
            wanted, video = set(indices.tolist()), self._open()
            frames = (video.next() for _ in range(int(indices[-1]) + 1))
            return np.stack([self._unpadded(f) for k, f in enumerate(frames) if k in wanted])

    def _unpadded(self, frame: Any) -> Pixels:
        rows = frame.asnumpy().reshape(self.height, -1)[:, : 3 * self.width]
        return rows.reshape(self.height, self.width, 3)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        base = self._decord._ffi.base
        # RuntimeError: `next` past the end, inside a generator. AssertionError: no frames at all.
        failures = (base.DECORDError, base.DECORDLimitReachedError, RuntimeError, AssertionError)
        try:
            yield
        except failures as error:
            raise DecordError(self.source.name, f"decord: {_one_line(error)}") from error


def _rows_look_whole_when_padded(width: int) -> bool:
    """Whether a row of RGB pixels, padded as FFmpeg does, is again a whole number of `width`s."""
    padded = (3 * math.ceil(width / align) * align for align in (16, 32, 64))
    return any(row > 3 * width and row % width == 0 for row in padded)


def _import_decord() -> ModuleType:
    if not importlib.util.find_spec("decord"):
        raise UserError("the reader decord is not installed here: set DATA.READER to auto or pyav")
    # First: decord's zlib would take the place of that of torchvision's PNG functions.
    import torchvision.io  # noqa: F401

    # isort: split
    import decord

    # It floods stderr on a bad file; what is wrong comes with the exception.
    decord.logging.set_level(decord.logging.QUIET)
    return decord


def _one_line(error: BaseException) -> str:
    """A native error's message without its stack trace and its place in the C++ source."""
    first = str(error).strip().partition("\n")[0]
    return re.sub(r"^.*\.cc:\d+:\s*(\[.*\]\s*)?", "", first) or type(error).__name__
