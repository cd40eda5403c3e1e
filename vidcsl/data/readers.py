"""Video files in, uint8 RGB frames out: the same frames whichever library decodes them.

Frame k is the k-th frame that the decoder puts out, in display order. Timestamps play no part: in
AVI files with MPEG-4 B-frames they are not monotonic, and a header's frame count may be wrong.
"""

import importlib.util
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from numpy.typing import ArrayLike, NDArray

from vidcsl.errors import UserError, VideoError

# A packet this small may stand for "no frame here" (MPEG-4's uncoded VOP, packed bitstreams).
_FRAMELESS_BYTES = 16
_STILL_IMAGE_FORMATS = ("image2", "_pipe")


@dataclass(frozen=True)
class Facts:
    """What a file says of itself and its first frame shows. Sizes are as displayed (rotated)."""

    container: str
    fps: float  # 0 where the file does not say
    height: int
    width: int


class Reader(ABC):
    """An open video file.

    Attributes:
        num_frames: how many frames can be decoded, indices 0 to `num_frames - 1`.
        fps: average frames per second; 0 where the file does not say.
        height, width: of the frames that `read` returns, pixels.
    """

    num_frames: int
    _video: Any = None  # the decoding library's handle, where it is kept open

    def __init__(self, path: Path, *, facts: Facts, short_side: int | None) -> None:
        self.path, self.fps = path, facts.fps
        self.height, self.width = scaled_size(facts.height, facts.width, short_side=short_side)

    def read(self, indices: ArrayLike) -> NDArray[np.uint8]:
        """Decode frames.

        Args:
            indices: frame numbers [T], in any order; repeats are decoded once.

        Returns:
            RGB frames [T, H, W, 3], uint8, in the order of `indices`.

        Raises:
            VideoError: a frame is beyond the file's end or cannot be decoded.
        """
        wanted = np.asarray(indices, dtype=np.int64)
        outside = wanted[(wanted < 0) | (wanted >= self.num_frames)]
        if outside.size:
            raise VideoError(self.path, f"no frame {outside[0]}, it holds {self.num_frames} frames")
        if not wanted.size:
            return np.empty((0, self.height, self.width, 3), dtype=np.uint8)
        unique, place = np.unique(wanted, return_inverse=True)
        return self._decode(unique)[place]

    @abstractmethod
    def _decode(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """The frames [T, H, W, 3] of strictly rising, valid indices."""

    def close(self) -> None:
        """Let go of the file."""
        self._video = None

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class PyavReader(Reader):
    """Decodes from the first frame to the last one asked for, without seeking.

    Exact for every file, and for clips of some seconds at least as fast as seeking; in long videos
    the decoder walks through everything before the clip.
    """

    def __init__(self, path: Path, *, facts: Facts, short_side: int | None) -> None:
        super().__init__(path, facts=facts, short_side=short_side)
        self.num_frames = count_frames(path)
        self._scaler = VideoReformatter()  # kept, for it is costly to set up

    def _decode(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        wanted, last = set(indices.tolist()), int(indices[-1])
        frames = []
        with _opened(self.path) as stream:
            for index, frame in enumerate(stream.container.decode(stream)):
                if index in wanted:
                    frames.append(self._to_rgb(frame))
                if index == last:
                    return np.stack(frames)
        raise VideoError(self.path, f"frame {last} cannot be decoded, the file may be cut short")

    def _to_rgb(self, frame: Any) -> NDArray[np.uint8]:
        turns = frame.rotation // 90
        height, width = (self.width, self.height) if turns % 2 else (self.height, self.width)
        scaled = self._scaler.reformat(
            frame, width=width, height=height, format="rgb24", interpolation="BILINEAR"
        )
        return np.rot90(scaled.to_ndarray(), turns)


class DecordReader(Reader):
    """Seeks to the clip and decodes straight to the size asked for, on one thread."""

    def __init__(self, path: Path, *, facts: Facts, short_side: int | None) -> None:
        super().__init__(path, facts=facts, short_side=short_side)
        self._decord = _import_decord()
        # decord's seeks may land some frames off in AVI files, its count includes packets without
        # a frame there, and its batches fail where it takes padding for a colour channel. Such
        # files are decoded in order from the start, like PyAV does.
        self._in_order = facts.container == "avi" or _rows_look_whole_when_padded(self.width)
        self._video = self._open()
        self.num_frames = count_frames(path) if self._in_order else len(self._video)

    def _open(self) -> Any:
        with self._errors():
            return self._decord.VideoReader(
                str(self.path),
                width=self.width,
                height=self.height,
                num_threads=1,
                # Any frame that decord would replace by a neighbour is an error.
                fault_tol=1e-9,
            )

    def _decode(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        with self._errors():
            if not self._in_order:
                return self._video.get_batch(indices).asnumpy()
            wanted, video = set(indices.tolist()), self._open()
            frames = (video.next() for _ in range(int(indices[-1]) + 1))
            return np.stack([self._unpadded(f) for k, f in enumerate(frames) if k in wanted])

    def _unpadded(self, frame: Any) -> NDArray[np.uint8]:
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
            raise VideoError(self.path, f"decord: {_one_line(error)}") from error


READERS: dict[str, type[Reader]] = {"decord": DecordReader, "pyav": PyavReader}


def open_reader(
    path: str | Path, *, backend: str = "auto", short_side: int | None = None
) -> Reader:
    """Open a video file.

    Args:
        path: the file.
        backend: a name in `READERS`, or "auto": decord where it is installed, save for AVI files
            and for those that it cannot open (AV1, GIF, raw streams), which PyAV reads.
        short_side: scale (up or down) so that the shorter side has this many pixels, the aspect
            kept and the longer side rounded to the nearest pixel; None keeps the file's size.

    Raises:
        VideoError: the file is missing or is no video that can be opened.
        UserError: the backend is unknown or not installed.
    """
    if backend not in ("auto", *READERS):
        raise UserError(f"unknown video reader {backend!r}: choose auto or one of {list(READERS)}")
    path = Path(path)
    facts = probe(path)
    *attempts, last = _by_preference(facts) if backend == "auto" else [backend]
    for name in attempts:
        with suppress(VideoError):  # The next one reads the file or says what is wrong with it.
            return READERS[name](path, facts=facts, short_side=short_side)
    return READERS[last](path, facts=facts, short_side=short_side)


def _by_preference(facts: Facts) -> list[str]:
    if facts.container == "avi" or not importlib.util.find_spec("decord"):
        return ["pyav"]
    return ["decord", "pyav"]


def scaled_size(height: int, width: int, *, short_side: int | None) -> tuple[int, int]:
    """(H, W) with the shorter side `short_side`, the longer rounded to the nearest pixel."""
    if short_side is None:
        return height, width
    scale = short_side / min(height, width)
    return math.floor(height * scale + 0.5), math.floor(width * scale + 0.5)


def probe(path: Path) -> Facts:
    """Open a file and decode its first frame. Raises VideoError where that is impossible."""
    with _opened(path) as stream:
        frame = next(stream.container.decode(stream), None)
        if frame is None:
            raise VideoError(path, "no frame can be decoded")
        turned = frame.rotation // 90 % 2
        height, width = (frame.width, frame.height) if turned else (frame.height, frame.width)
        fps = float(stream.average_rate or stream.guessed_rate or 0)
        return Facts(stream.container.format.name, fps, height, width)


def count_frames(path: Path) -> int:
    """How many frames a file's decoder puts out; headers are not believed.

    Packets are counted, which is quick. Only where one is so small that it may hold no frame is the
    whole file decoded.
    """
    with _opened(path) as stream:
        # The last "packet" is the empty one that tells the decoder to give out what it holds.
        sizes = [packet.size for packet in stream.container.demux(stream)][:-1]
    if sizes and min(sizes) >= _FRAMELESS_BYTES:
        return len(sizes)
    with _opened(path) as stream:
        return sum(1 for _ in stream.container.decode(stream))


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The best video stream of a file, for one thread; FFmpeg's errors become VideoError."""
    if not path.is_file():
        raise VideoError(path, "there is no such file")
    if path.stat().st_size == 0:
        raise VideoError(path, "the file is empty")
    try:
        # Some old files hold tags that are no UTF-8; they are not used.
        with av.open(str(path), metadata_errors="ignore") as container:
            if container.format.name.endswith(_STILL_IMAGE_FORMATS):
                raise VideoError(path, "it is a still image, not a video")
            stream = container.streams.best("video")
            if stream is None:
                raise VideoError(path, "it holds no video that can be decoded")
            stream.thread_type = "NONE"
            yield stream
    except av.error.FFmpegError as error:
        raise VideoError(path, f"not a readable video ({error.strerror})") from error


def _rows_look_whole_when_padded(width: int) -> bool:
    """Whether a row of RGB pixels, padded as FFmpeg does, is again a whole number of `width`s."""
    padded = (3 * math.ceil(width / align) * align for align in (16, 32, 64))
    return any(row > 3 * width and row % width == 0 for row in padded)


def _import_decord() -> ModuleType:
    if not importlib.util.find_spec("decord"):
        raise UserError("the reader decord is not installed here: set DATA.READER to auto or pyav")
    import decord

    # It floods stderr on a bad file; what is wrong comes with the exception.
    decord.logging.set_level(decord.logging.QUIET)
    return decord


def _one_line(error: BaseException) -> str:
    """A native error's message without its stack trace and its place in the C++ source."""
    first = str(error).strip().partition("\n")[0]
    return re.sub(r"^.*\.cc:\d+:\s*(\[.*\]\s*)?", "", first) or type(error).__name__
