"""decord and torchcodec: they conceal damage, so PyAV decodes the same frames beside them.

Whatever a config chooses, the frames are those that `pyav.py` would give.
"""

import importlib.util
import math
import re
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vidcsl.data.readers.pyav import PyavReader
from vidcsl.data.readers.reader import (
    READERS,
    Pixels,
    PixelShape,
    Reader,
    Source,
    UnsuitedError,
)
from vidcsl.errors import UserError, VideoError

# Grey levels. Libraries interpolate and round colours differently, by less: of sound files the mean
# of a frame differs by up to 1.8, and that of a square, where rounding up and down cancel, by 2.6.
_MOST_DIFFERENCE = 3.5
_MOST_IN_A_SQUARE = 8.0
_SQUARE = 8  # pixels: a block of the codec, which is what damage moves


class CheckedReader(Reader):
    """Reports the damage that PyAV finds, and returns PyAV's frames where the library's differ.

    Files that ask for an orientation, or for colours that not all libraries know, are left to PyAV.

    They differ where a library trusts time stamps that damage has changed, decodes through damage
    that PyAV skips, or does not know the range of the colours. Each frame is held against PyAV's by
    itself, so that it is the same whatever else is read with it. Once a frame was PyAV's, the
    reader's `name` is "pyav".
    """

    def __init__(
        self, source: Source, *, short_side: int | None = None, pixels: PixelShape = "stored"
    ) -> None:
        super().__init__(source)
        self._strict = PyavReader(source, short_side=short_side, pixels=pixels)
        if not self._strict.ordinary:
            self._strict.close()
            raise UnsuitedError(source.name, "libraries differ in how they show it")
        self.notes = self._strict.notes
        self.num_frames, self.fps = self._strict.num_frames, self._strict.fps
        self.height, self.width = self._strict.height, self._strict.width

    @property
    def times(self) -> NDArray[np.float64] | None:
        """See `Reader.times`."""
        return self._strict.times

    def close(self) -> None:
        """Let go of the file."""
        super().close()
        self._strict.close()

    def _decode(self, indices: NDArray[np.int64]) -> Pixels:
        sound = self._strict.read(indices)
        frames = self.decode_unchecked(indices)
        if frames.shape == sound.shape:
            others = [other_picture(*pair) for pair in zip(frames, sound, strict=True)]
            if not any(others):
                return frames
            sound = np.where(np.array(others)[:, None, None, None], sound, frames)
        self.name = self._strict.name  # type: ignore[misc]  # of this file alone
        return sound

    @abstractmethod
    def decode_unchecked(self, indices: NDArray[np.int64]) -> Pixels:
        """The frames as the library gives them: [T, H, W, 3] of strictly rising, valid indices."""


def other_picture(one: Pixels, other: Pixels) -> bool:
    """Whether two decodings of a frame, uint8 `[H, W, 3]`, differ by more than their rounding.

    On average, or in one place: a few moved blocks hardly change the mean of a frame.
    """
    difference = one.astype(np.int16) - other
    if np.abs(difference).mean() > _MOST_DIFFERENCE:
        return True
    height, width = (max(1, size // _SQUARE) * min(size, _SQUARE) for size in one.shape[:2])
    rows, columns = min(height, _SQUARE), min(width, _SQUARE)
    squares = difference[:height, :width].reshape(
        height // rows, rows, width // columns, columns, 3
    )
    return bool(np.abs(squares.mean(axis=(1, 3, 4))).max() > _MOST_IN_A_SQUARE)


# decord -------------------------------------------------------------------------------------------


class DecordError(VideoError):
    """What decord itself could not read; no other fault, such as an expired time limit."""


@READERS.register("decord", "seeks and scales by itself; an optional extra")
class DecordReader(CheckedReader):
    """decord on one thread. Arguments and errors as for `PyavReader`."""

    name = "decord"

    def __init__(
        self, source: Source, *, short_side: int | None = None, pixels: PixelShape = "stored"
    ) -> None:
        super().__init__(source, short_side=short_side, pixels=pixels)
        self._decord = _import_decord()
        try:
            self._video = self._open()
        except DecordError as error:  # a GIF, say, or AV1; PyAV has opened it
            self._strict.close()
            raise UnsuitedError(source.name, error.reason) from error
        # A row of RGB pixels, padded as FFmpeg pads it, may again be a whole number of `width`s.
        # decord then takes the padding for a colour channel, and its batches fail.
        padded = (3 * math.ceil(self.width / align) * align for align in (16, 32, 64))
        misread = any(row > 3 * self.width and row % self.width == 0 for row in padded)
        # In AVI files its seeks may land some frames off and its count includes packets without a
        # frame. All such files are decoded in order from the start.
        self._in_order = (
            self._strict.container == "avi" or len(self._video) != self.num_frames or misread
        )

    @classmethod
    def check_installed(cls) -> None:
        """Raise UserError where decord is missing or does not load."""
        _import_decord()

    def decode_unchecked(self, indices: NDArray[np.int64]) -> Pixels:
        """See `CheckedReader`."""
        if not self._in_order:
            # Where a seek fails, decoding from the start may still give every frame.
            with suppress(DecordError), self._errors():
                return self._video.get_batch(indices).asnumpy()
        with self._errors():
            wanted, video, found = set(indices.tolist()), self._open(), []
            for number in range(int(indices[-1]) + 1):
                frame = video.next()
                if number in wanted:
                    rows = frame.asnumpy().reshape(self.height, -1)[:, : 3 * self.width]
                    found.append(rows.reshape(self.height, self.width, 3))
            return np.stack(found)

    def _open(self) -> Any:
        with self._errors():
            return self._decord.VideoReader(
                self.source.as_argument(),
                width=self.width,
                height=self.height,
                num_threads=1,
                fault_tol=1e-9,
            )

    @contextmanager
    def _errors(self) -> Iterator[None]:
        base = self._decord._ffi.base
        native = (base.DECORDError, base.DECORDLimitReachedError, RuntimeError)
        try:
            yield
        except (*native, StopIteration, AssertionError) as error:  # past the end; no frames at all
            # A native error comes with a stack trace and its place in the C++ source.
            first = str(error).strip().partition("\n")[0]
            reason = re.sub(r"^.*\.cc:\d+:\s*(\[.*\]\s*)?", "", first) or type(error).__name__
            raise DecordError(self.source.name, f"decord: {reason}") from error


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


# torchcodec ---------------------------------------------------------------------------------------


@READERS.register("torchcodec", "needs FFmpeg's shared libraries; an optional extra")
class TorchcodecReader(CheckedReader):
    """torchcodec numbers frames by their time stamps, so PyAV reads files where these mislead.

    Arguments and errors as for `PyavReader`.
    """

    name = "torchcodec"

    def __init__(
        self, source: Source, *, short_side: int | None = None, pixels: PixelShape = "stored"
    ) -> None:
        super().__init__(source, short_side=short_side, pixels=pixels)
        codec = _import_torchcodec()
        if not self._strict.in_time_order:
            raise UnsuitedError(source.name, "its time stamps do not show the frames' order")
        other_size = short_side or pixels == "square"
        resize = [codec.transforms.Resize((self.height, self.width))] if other_size else []
        with self._errors():
            self._video = codec.decoders.VideoDecoder(
                source.as_argument() if source.data is None else source.data,
                dimension_order="NCHW",
                num_ffmpeg_threads=1,
                seek_mode="exact",
                transforms=resize,
            )
        if len(self._video) != self.num_frames:
            raise UnsuitedError(source.name, f"torchcodec counts {len(self._video)} frames")

    @classmethod
    def check_installed(cls) -> None:
        """Raise UserError where torchcodec is missing or does not load."""
        _import_torchcodec()

    def decode_unchecked(self, indices: NDArray[np.int64]) -> Pixels:
        """See `CheckedReader`."""
        with self._errors():
            frames = self._video.get_frames_at(indices.tolist()).data  # [T, 3, H, W]
        return frames.permute(0, 2, 3, 1).numpy()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (RuntimeError, ValueError, IndexError) as error:
            # What went wrong, without the place in the C++ source.
            first = str(error).strip().partition("\n")[0]
            reason = first.rpartition(".cpp:")[2].partition(", ")[2] or first
            message = f"torchcodec: {reason or type(error).__name__}"
            raise VideoError(self.source.name, message) from error


def _import_torchcodec() -> Any:
    if not importlib.util.find_spec("torchcodec"):
        raise UserError(
            "the reader torchcodec is not installed here: pip install 'vidcsl[torchcodec]', or set "
            "DATA.READER to auto"
        )
    try:
        import torchcodec.decoders
        import torchcodec.transforms
    except (RuntimeError, ImportError, OSError) as error:
        raise UserError(
            "torchcodec does not load here; it needs FFmpeg's shared libraries (Debian: apt "
            "install libavdevice59) and a matching torch; or set DATA.READER to auto"
        ) from error
    return torchcodec
