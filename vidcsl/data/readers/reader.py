"""What every reader shares: the source of the bytes, the interface, scaling and cropping."""

import io
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
from av.filter import Graph
from av.video.reformatter import VideoReformatter
from numpy.typing import ArrayLike, NDArray

from vidcsl.errors import VideoError
from vidcsl.registry import Registry

Pixels = NDArray[np.uint8]
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
    """This reader would number the frames of this file wrongly; PyAV reads it instead."""


class Reader(ABC):
    """An open video.

    Frame k is the k-th frame that the decoder puts out, in display order. A header's frame count
    may be wrong, and time stamps may not rise (MPEG-4 B-frames in AVI), so readers trust neither.

    Attributes:
        name: the reader's name in `READERS`.
        num_frames: how many frames can be decoded, indices 0 to `num_frames - 1`.
        fps: average frames per second; 0 if the file has no rate.
        height, width: of the frames that `read` returns, pixels.
    """

    name: ClassVar[str]
    num_frames: int
    fps: float
    height: int
    width: int
    _video: Any = None  # the decoding library's handle, where it is kept open

    def __init__(self, source: Source) -> None:
        self.source = source

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


def scaled_size(height: int, width: int, *, short_side: int | None) -> tuple[int, int]:
    """(H, W) with the shorter side `short_side`, the longer rounded to the nearest pixel."""
    if short_side is None:
        return height, width
    scale = short_side / min(height, width)
    return math.floor(height * scale + 0.5), math.floor(width * scale + 0.5)


@READERS.register("auto", "PyAV for a file, pictures for a folder of .jpg or .png files")
def automatic(source: Source, *, short_side: int | None = None) -> Reader:
    """PyAV is right for every file, and the fastest reader that reports damage."""
    folder = source.path is not None and source.path.is_dir()
    reader: Reader = READERS["pictures" if folder else "pyav"](source, short_side=short_side)
    return reader


# Decoded frames to RGB planes of the size asked for, by FFmpeg ------------------------------------

# Planar, because FFmpeg writes planes three times as fast as interleaved pixels.
_FORMAT, _RGB_PLANES = "gbrp", (1, 2, 0)


class Scaler:
    """Whole frames to one size."""

    def __init__(self, height: int, width: int) -> None:
        self.height, self.width = height, width
        self._scaler = VideoReformatter()  # kept, because it is costly to set up

    def write(self, frame: Any, into: Pixels) -> None:
        """Turn a frame upright and scale it into planes [3, H, W]."""
        turns = frame.rotation // 90
        height, width = (self.width, self.height) if turns % 2 else (self.height, self.width)
        scaled = self._scaler.reformat(
            frame, width=width, height=height, format=_FORMAT, interpolation="BILINEAR"
        )
        _copy(scaled, into, turns=turns)


class Cutter:
    """One box of each frame, resized to a square; the frames must not be turned.

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
        graph = Graph()
        graph.threads = 1
        source = f"video_size={width}x{height}:pix_fmt={pixels}:time_base=1/25"
        steps = [
            graph.add("buffer", f"{source}:colorspace={colours}:range={span}"),
            graph.add("crop", f"{wide}:{tall}:{left}:{top}"),
            graph.add("scale", f"{self.size}:{self.size}:flags=bilinear"),
            graph.add("format", _FORMAT),
            graph.add("buffersink"),
        ]
        graph.link_nodes(*steps).configure()
        return graph


def _copy(frame: Any, into: Pixels, *, turns: int = 0) -> None:
    for plane, channel in zip(frame.planes, _RGB_PLANES, strict=True):
        rows = np.frombuffer(memoryview(plane), np.uint8).reshape(plane.height, plane.line_size)
        rows = rows[:, : plane.width]
        into[channel] = np.rot90(rows, turns) if turns else rows
