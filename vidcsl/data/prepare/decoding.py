"""Every frame of a video, in the order in which its decoder puts them out."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av

from vidcsl.data.readers import Source, open_reader
from vidcsl.data.readers.pyav import frames_of, open_stream
from vidcsl.errors import VideoError


@dataclass(frozen=True)
class Decoding:
    """A video that is being decoded.

    Attributes:
        frames: `av.VideoFrame`s; they raise VideoError where the file is damaged.
        codec: its name.
        rate: frames per second on average, None where the file does not say.
    """

    frames: Iterator[Any]
    codec: str
    rate: Fraction | None


@contextmanager
def decoding(path: Path) -> Iterator[Decoding]:
    """Open a file, or a folder of pictures. Raises VideoError where that is impossible."""
    if path.is_dir():
        yield Decoding(_pictures(path), "pictures", None)
        return
    stream = open_stream(Source.of(path))
    with stream.container:
        rate = stream.average_rate or stream.guessed_rate
        yield Decoding(_frames(stream, path), stream.codec_context.name, rate)


def _frames(stream: Any, path: Path) -> Iterator[Any]:
    number = -1
    try:
        for number, frame in enumerate(frames_of(stream)):
            if frame.is_corrupt:
                raise VideoError(path, f"frame {number} is damaged")
            yield frame
    except av.error.FFmpegError as error:
        where = f"after frame {number}" if number >= 0 else "before any frame"
        raise VideoError(path, f"decoding fails {where} ({error.strerror})") from error
    if number < 0:
        raise VideoError(path, "no frame can be decoded")


def _pictures(path: Path) -> Iterator[Any]:
    with open_reader(path, backend="pictures") as reader:
        for number in range(reader.num_frames):
            yield av.VideoFrame.from_ndarray(reader.read([number])[0].copy(), format="rgb24")
