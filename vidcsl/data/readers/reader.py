"""What every reader shares: the source of the bytes, the interface, opening, scaling, cropping."""

import io
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar

import numpy as np
from av.filter import Graph
from av.video.reformatter import Interpolation, VideoReformatter
from numpy.typing import ArrayLike, NDArray

from vidcsl.errors import UserError, VideoError
from vidcsl.registry import Registry

Pixels = NDArray[np.uint8]
PixelShape = Literal["stored", "square"]
"""What is done with pixels that are not square: nothing, or the frame is stretched."""
R = TypeVar("R", bound="Reader")

READERS: Registry[Any] = Registry(
    "DATA.READER", default="auto", meaning="the library that decodes videos"
)


@dataclass(frozen=True)
class Source:
    """A video to open.

    Attributes:
        name: what messages call it; the path, unless the bytes are given.
        data: the whole file's bytes, as a sample of a tar shard has them; None: they are on disk.
    """

    name: str
    data: bytes | None = None

    @classmethod
    def of(cls, video: "str | Path | Source") -> "Source":
        """The source that a path stands for; a source stays what it is."""
        return video if isinstance(video, Source) else cls(str(video))

    @property
    def path(self) -> Path | None:
        """Where it is on disk; None for bytes in memory."""
        return Path(self.name) if self.data is None else None

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return Path(self.name).stat().st_size if self.data is None else len(self.data)

    def read(self) -> bytes:
        """All bytes of the file."""
        return Path(self.name).read_bytes() if self.data is None else self.data

    def read_at(self, place: int, size: int) -> bytes:
        """`size` bytes from byte `place` on."""
        if self.data is not None:
            return self.data[place : place + size]
        with Path(self.name).open("rb") as file:
            file.seek(place)
            return file.read(size)

    def as_argument(self) -> str | io.BytesIO:
        """What the decoding libraries take: a path, or a file object over the bytes.

        An absolute path: FFmpeg would take what stands before a colon (12:30.mp4) for a protocol.
        """
        return os.path.abspath(self.name) if self.data is None else io.BytesIO(self.data)

    def check(self) -> None:
        """Raise VideoError if the file is missing or empty."""
        if self.path is not None and not self.path.is_file():
            raise VideoError(self.name, "there is no such file")
        if self.size == 0:
            raise VideoError(self.name, "the file is empty")


class UnsuitedError(VideoError):
    """This reader does not open this file, or would number its frames wrongly; PyAV reads it."""


class Reader(ABC):
    """An open video.

    Frame k is the k-th frame that the decoder puts out, in display order. A header's frame count
    may be wrong, and time stamps may not rise (MPEG-4 B-frames in AVI), so readers trust neither.

    Attributes:
        name: the reader's name in `READERS`.
        num_frames: how many frames can be decoded, indices 0 to `num_frames - 1`.
        fps: average frames per second; 0 if the file has no rate.
        height, width: of the frames that `read` returns, pixels.
        notes: what the file asks for and is not done, or is otherwise uncommon, a sentence each.
    """

    name: ClassVar[str]
    num_frames: int
    fps: float
    height: int
    width: int
    notes: tuple[str, ...] = ()
    _video: Any = None  # the decoding library's handle, where it is kept open

    def __init__(self, source: Source) -> None:
        self.source = source

    @property
    def times(self) -> NDArray[np.float64] | None:
        """When each frame is shown [num_frames], in seconds after the first.

        None where the file does not say, or where frame k is shown at k / fps anyway.
        """
        return None

    @classmethod  # noqa: B027  (most readers need nothing more)
    def check_installed(cls) -> None:
        """Raise UserError if the library that this reader needs does not load."""

    def read(self, indices: ArrayLike) -> Pixels:
        """Decode frames.

        Args:
            indices: frame numbers [T], in any order; repeats are decoded once.

        Returns:
            RGB frames [T, H, W, 3], uint8, in the order of `indices`, not always contiguous.

        Raises:
            VideoError: a frame is beyond the file's end or cannot be decoded.
        """
        wanted = np.asarray(indices, dtype=np.int64)
        self.check_inside(wanted)
        if not wanted.size:
            return np.empty((0, self.height, self.width, 3), dtype=np.uint8)
        unique, place = np.unique(wanted, return_inverse=True)
        frames = self._decode(unique)
        return frames if np.array_equal(unique, wanted) else frames[place]

    def read_crops(
        self, clips: NDArray[np.int64], boxes: NDArray[np.int64], *, size: int
    ) -> Pixels:
        """Decode the views of a video, each cut out of its frames and resized.

        Args:
            clips: frame numbers [V, T].
            boxes: (top, left, height, width) of each view [V, 4], in pixels of what `read` returns.
            size: side S of the result.

        Returns:
            RGB views [V, 3, T, S, S], uint8, contiguous.

        Raises:
            VideoError: as `read`.
        """
        import torch  # here, because `vidcsl prepare` starts its processes without it
        from torchvision.transforms.v2.functional import resized_crop

        frames = torch.from_numpy(self.read(clips.reshape(-1))).permute(0, 3, 1, 2)
        views = [
            resized_crop(view, *box, size=[size, size], antialias=True)
            for view, box in zip(frames.unflatten(0, clips.shape), boxes.tolist(), strict=True)
        ]
        return torch.stack(views).transpose(1, 2).contiguous().numpy()

    @abstractmethod
    def _decode(self, indices: NDArray[np.int64]) -> Pixels:
        """The frames [T, H, W, 3] of strictly rising, valid indices."""

    def check_inside(self, wanted: NDArray[np.int64]) -> None:
        """Raise VideoError for a frame number that the video does not have."""
        outside = wanted[(wanted < 0) | (wanted >= self.num_frames)]
        if outside.size:
            raise VideoError(
                self.source.name, f"no frame {outside[0]}, it holds {self.num_frames} frames"
            )

    def close(self) -> None:
        """Let go of the file."""
        self._video = None

    def __enter__(self: R) -> R:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_reader(
    video: str | Path | Source,
    *,
    backend: str = "auto",
    short_side: int | None = None,
    pixels: PixelShape = "stored",
) -> Reader:
    """Open a video; the `name` of the result is that of the reader that was used.

    Args:
        video: the path of a file or of a folder of pictures, or a `Source` that holds the bytes.
        backend: a name in `READERS`.
        short_side: scale (up or down) so that the shorter side has this many pixels, the aspect
            kept and the longer side rounded to the nearest pixel; None keeps the file's size.
        pixels: "square" stretches frames whose pixels are not square to the width at which they are
            to be shown; "stored" leaves them, and says so in the reader's `notes`.

    Raises:
        VideoError: the file is missing or is no video that can be opened.
        UserError: the backend is unknown or not installed.
    """
    if backend not in READERS:
        raise UserError(f"unknown video reader {backend!r}: choose {', '.join(READERS)}")
    source = Source.of(video)
    try:
        reader: Reader = READERS[backend](source, short_side=short_side, pixels=pixels)
    except UnsuitedError:
        reader = READERS["pyav"](source, short_side=short_side, pixels=pixels)
    return reader


def scaled_size(height: float, width: float, *, short_side: int | None) -> tuple[int, int]:
    """(H, W) with the shorter side `short_side`, the longer rounded to the nearest pixel."""
    scale = 1.0 if short_side is None else short_side / min(height, width)
    return math.floor(height * scale + 0.5), math.floor(width * scale + 0.5)


@READERS.register("auto", "PyAV for a file, pictures for a folder of .jpg or .png files")
def automatic(
    source: Source, *, short_side: int | None = None, pixels: PixelShape = "stored"
) -> Reader:
    """PyAV is right for every file, and the fastest reader that reports damage."""
    name = "pictures" if source.path is not None and source.path.is_dir() else "pyav"
    reader: Reader = READERS[name](source, short_side=short_side, pixels=pixels)
    return reader


# How a frame is to be shown -----------------------------------------------------------------------


class Orientation(NamedTuple):
    """One of the eight ways to lay a picture on its sides: from stored pixels to those shown."""

    transposed: bool = False
    upside_down: bool = False  # after transposing
    mirrored: bool = False  # after transposing

    def applied(self, plane: NDArray[Any]) -> NDArray[Any]:
        """A view [H, W] of a stored plane as it is shown."""
        plane = plane.T if self.transposed else plane
        return plane[:: -1 if self.upside_down else 1, :: -1 if self.mirrored else 1]


AS_STORED = Orientation()
# Sines of this size come from rounding; half a degree is meant.
_ROUNDING = 0.005


def orientation_of(frame: Any) -> tuple[Orientation, str]:
    """The orientation in a frame's display matrix, and a sentence where it is none of the eight.

    FFmpeg's own `rotation` knows no mirrors, and leaves what to do with 5 degrees to others.
    """
    found = frame.side_data.get("DISPLAYMATRIX")
    if found is None:
        return AS_STORED, ""
    # x' = a x + c y, y' = b x + d y, with y downwards.
    a, b, _, c, d = np.frombuffer(bytes(found), np.int32)[:5].astype(float)
    for transposed, large, small in ((False, (a, d), (b, c)), (True, (b, c), (a, d))):
        if min(map(abs, large)) > 0 and max(map(abs, small)) <= _ROUNDING * min(map(abs, large)):
            down, across = (b, c) if transposed else (d, a)
            return Orientation(transposed, bool(down < 0), bool(across < 0)), ""
    degrees = math.degrees(math.atan2(b, a))
    return AS_STORED, f"its orientation, {degrees:.4g} degrees, is no quarter turn and is ignored"


# The matrices by which FFmpeg can turn YUV into RGB (H.273); 2: not known.
_MATRICES, _UNKNOWN = (0, 1, 2, 4, 5, 6, 7, 9), 2
_RANGES = (0, 1, 2)


def settle_colours(frame: Any) -> str:
    """Leave only tags by which colours are turned into RGB; a sentence where the matrix is lost.

    Transfer and primaries are not converted: encoders see the values as they were coded. With tags
    that it cannot convert, or that are reserved, FFmpeg refuses the frame, in some paths only.
    """
    frame.color_primaries = frame.color_trc = _UNKNOWN
    if frame.color_range not in _RANGES:
        frame.color_range = 0
    matrix = int(frame.colorspace)
    if matrix in _MATRICES:
        return ""
    frame.colorspace = _UNKNOWN
    return f"its colour matrix, {matrix} of H.273, is not known: read as BT.601"


# Decoded frames to RGB planes of the size asked for, by FFmpeg ------------------------------------

# Planar, because FFmpeg writes planes three times as fast as interleaved pixels.
_FORMAT, _RGB_PLANES = "gbrp", (1, 2, 0)


# FFmpeg's quick conversion of frames that keep their size handles 16 columns at a time, and leaves
# the last eight or fewer as they were in memory. Another rounding takes another way.
_EXACT = Interpolation.BILINEAR | Interpolation.ACCURATE_RND


def _loses_columns(width: int) -> bool:
    return 0 < width % 16 <= 8


class Scaler:
    """Whole frames to one size."""

    def __init__(self, height: int, width: int) -> None:
        self.height, self.width = height, width
        self._scaler = VideoReformatter()  # kept, because it is costly to set up

    def write(self, frame: Any, into: Pixels) -> None:
        """Turn a frame upright and scale it into planes [3, H, W]."""
        settle_colours(frame)
        orientation, _ = orientation_of(frame)
        across = orientation.transposed
        height, width = (self.width, self.height) if across else (self.height, self.width)
        same = (height, width) == (frame.height, frame.width)
        scaled = self._scaler.reformat(
            frame,
            width=width,
            height=height,
            format=_FORMAT,
            interpolation=_EXACT if same and _loses_columns(width) else Interpolation.BILINEAR,
        )
        _copy(scaled, into, orientation)


class Cutter:
    """One box of each frame, resized to a square; the frames must be shown as they are stored.

    Args:
        box: (top, left, height, width) as fractions of the frame. Its corner is rounded to a pixel
            of the frame's colour planes, which have half the size in most videos.
        size: side of the square.
    """

    def __init__(self, box: Sequence[float], *, size: int) -> None:
        self.box, self.size = box, size
        self._graph: Graph | None = None
        self._made_for: tuple[Any, ...] = ()

    def write(self, frame: Any, into: Pixels) -> None:
        """Cut and scale a frame into planes [3, S, S]."""
        settle_colours(frame)
        kind = (frame.width, frame.height, frame.format.name, frame.colorspace, frame.color_range)
        if self._graph is None or kind != self._made_for:
            self._graph, self._made_for = self._make(*kind), kind
        self._graph.push(frame)
        _copy(self._graph.pull(), into)

    def _make(self, width: int, height: int, pixels: str, colours: int, span: int) -> Graph:
        sides = (height, width, height, width)
        top, left, tall, wide = (
            round(part * side) for part, side in zip(self.box, sides, strict=True)
        )
        tall, wide = max(2, tall), max(2, wide)
        top, left = min(top, height - tall), min(left, width - wide)
        same = (tall, wide) == (self.size, self.size)
        flags = "bilinear+accurate_rnd" if same and _loses_columns(self.size) else "bilinear"
        graph = Graph()
        graph.threads = 1
        source = f"video_size={width}x{height}:pix_fmt={pixels}:time_base=1/25"
        steps = [
            graph.add("buffer", f"{source}:colorspace={colours}:range={span}"),
            graph.add("crop", f"{wide}:{tall}:{left}:{top}"),
            graph.add("scale", f"{self.size}:{self.size}:flags={flags}"),
            graph.add("format", _FORMAT),
            graph.add("buffersink"),
        ]
        graph.link_nodes(*steps).configure()
        return graph


def _copy(frame: Any, into: Pixels, orientation: Orientation = AS_STORED) -> None:
    for plane, channel in zip(frame.planes, _RGB_PLANES, strict=True):
        into[channel] = orientation.applied(pixels_of(plane))


def pixels_of(plane: Any) -> Pixels:
    """A view [H, W] of a plane's bytes, without the padding of its rows."""
    rows = np.frombuffer(memoryview(plane), np.uint8).reshape(plane.height, plane.line_size)
    return rows[:, : plane.width]
