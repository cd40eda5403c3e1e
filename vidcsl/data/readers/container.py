"""A video file opened by FFmpeg: its stream, its facts, and its faults as VideoError."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

import av

from vidcsl.data.readers.reader import Source
from vidcsl.errors import VideoError

_STILL_IMAGE_FORMATS = ("image2", "_pipe")
# These containers cannot say that a picture is to be turned.
_NEVER_ROTATED = ("avi", "gif", "h264", "hevc")
# Pictures above this many pixels are taken for a damaged header, not for something to allocate.
_MOST_PIXELS = 2**27


@dataclass(frozen=True)
class Facts:
    """What a file says of itself and its first frame shows. Sizes are as displayed (rotated)."""

    container: str
    fps: float  # 0 where the file does not say
    height: int
    width: int


@contextmanager
def reported(source: Source) -> Iterator[None]:
    """FFmpeg's errors become VideoError."""
    try:
        yield
    except (av.error.FFmpegError, MemoryError) as error:
        reason = getattr(error, "strerror", None) or "it asks for more memory than there is"
        raise VideoError(source.name, f"not a readable video ({reason})") from error


def open_stream(source: Source) -> Any:
    """The best video stream of a file, to be decoded by one thread; its `container` is open.

    Raises:
        VideoError: there is no such file, or no video in it that can be decoded.
    """
    source.check()
    with reported(source):
        # Some old files hold tags that are no UTF-8; they are not used.
        container = av.open(source.as_argument(), metadata_errors="ignore")
        try:
            return _video_of(container, source)
        except BaseException:
            container.close()
            raise


def _video_of(container: Any, source: Source) -> Any:
    if container.format.name.endswith(_STILL_IMAGE_FORMATS):
        raise VideoError(source.name, "it is a still image, not a video")
    stream = container.streams.best("video")
    if stream is None or stream.codec_context is None:
        raise VideoError(source.name, "it holds no video that can be decoded")
    stream.thread_type = "NONE"
    # A decoder that meets a fault says so, instead of painting over it.
    stream.codec_context.options = {
        "err_detect": "explode",
        "max_pixels": str(_MOST_PIXELS),
    }
    return stream


def frames_of(stream: Any) -> Iterator[Any]:
    """The frames of a stream from where it stands, as the decoder puts them out."""
    # PyAV's own generators keep some memory for good where they are left early and not closed.
    with closing(stream.container.demux(stream)) as packets:
        for packet in packets:
            yield from packet.decode()


def shows_size(stream: Any) -> bool:
    """Whether a file's header alone says how large its pictures are shown."""
    codec = stream.codec_context
    return stream.container.format.name in _NEVER_ROTATED and bool(codec.height and codec.width)


def facts_of(stream: Any, first: Any | None) -> Facts:
    """What is known of a stream; `first` is its first frame, None where `shows_size`."""
    shown = first or stream.codec_context
    height, width = shown.height, shown.width
    if first is not None and first.rotation // 90 % 2:
        height, width = width, height
    fps = float(stream.average_rate or stream.guessed_rate or 0)
    return Facts(stream.container.format.name, fps, height, width)


def first_frame(stream: Any, source: Source) -> Any:
    """The first frame of a stream at its start. Raises VideoError where there is none."""
    frame = next(frames_of(stream), None)
    if frame is None:
        raise VideoError(source.name, "no frame can be decoded")
    return frame
