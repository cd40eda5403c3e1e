"""The default reader: decodes with PyAV, and strictly: what FFmpeg finds damaged is an error."""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import chain
from typing import Any

import av
import numpy as np
from av.stream import Disposition
from numpy.typing import NDArray

from vidcsl.data.readers.frame_index import (
    FrameIndex,
    Start,
    header_index,
    is_clean_start,
    is_idr,
    packet_index,
    rate_varies,
)
from vidcsl.data.readers.reader import (
    AS_STORED,
    READERS,
    Cutter,
    Orientation,
    Pixels,
    PixelShape,
    Reader,
    Scaler,
    Source,
    orientation_of,
    scaled_size,
    settle_colours,
)
from vidcsl.errors import VideoError

_STILL_IMAGE_FORMATS = ("image2", "_pipe")
# Neither these containers nor, with some exceptions, what is in them can mark a video as turned.
_NEVER_TURNED, _TURNED_BY_THEMSELVES = ("avi", "gif"), ("h264", "hevc")
# More pixels than this mean a damaged header: they are not allocated.
_MOST_PIXELS = 2**27
# Frames that had to be decoded to be counted are kept up to this size, and not decoded again.
_KEPT_BYTES = 256 * 2**20
# To decode this many frames that are not wanted takes no longer than a seek to a keyframe.
_JUMP_WORTH = 4
# Pictures that H.264 and H.265 allow to come before one that is shown earlier.
_DEEPEST_ORDER = 16
# Pictures that H.264 allows to be kept for reference.
_MOST_REFERENCES = 16

Numbered = Iterator[tuple[int, Any]]


@READERS.register("pyav", "FFmpeg by PyAV, strict: damage is an error")
class PyavReader(Reader):
    """Opens a file once, reads its packets once, and decodes no more than it must.

    Decoding begins at the last keyframe that is a clean start; if there is none, or if it would
    leave the frames' numbers in doubt, at the first frame.

    Args:
        source: the video.
        short_side, pixels: see `open_reader`.

    Raises:
        VideoError: it cannot be opened, or no frame can be decoded.
    """

    name = "pyav"

    def __init__(
        self, source: Source, *, short_side: int | None = None, pixels: PixelShape = "stored"
    ) -> None:
        super().__init__(source)
        self._video, self._moved = open_stream(source), False
        self._kept: list[Any] = []
        with reported(source):
            index = header_index(self._video, source) or packet_index(self._at_start())
            self._index = index or self._index_by_decoding()
            first = None
            if not shows_size(self._video):  # it may open the file again
                first = self._kept[0] if self._kept else first_frame(self._at_start(), source)
            facts = facts_of(self._video, first, pixels=pixels)
        self.ordinary = facts.ordinary
        self._turned, self.notes = facts.orientation != AS_STORED, facts.notes
        self._times = self._varying_times(self._video.time_base)
        if self._times is not None:
            self.notes += ("its frame rate varies",)
        self.num_frames, self.fps = self._index.count, facts.fps
        if not self.num_frames:
            raise VideoError(source.name, "no frame can be decoded")
        self.height, self.width = scaled_size(facts.height, facts.width, short_side=short_side)

    @property
    def container(self) -> str:
        """FFmpeg's name of the file's format."""
        return self._video.container.format.name

    @property
    def in_time_order(self) -> bool:
        """Whether every frame has a time stamp, by which it can be found."""
        avi = self.container == "avi"
        return bool(self._index.starts) and not (avi and self._video.codec_context.has_b_frames)

    def _at_start(self) -> Any:
        """The stream, about to be read from its start."""
        if self._moved:
            self.close()
            self._video = open_stream(self.source)
        self._moved = True
        return self._video

    @property
    def times(self) -> NDArray[np.float64] | None:
        """See `Reader.times`."""
        return self._times

    def _varying_times(self, time_base: Fraction) -> NDArray[np.float64] | None:
        index = self._index
        if index.clock == "dts" and self._video.codec_context.has_b_frames:
            # Frames are decoded in another order than shown, so that these stamps tell only whether
            # the rate varies, and only together with those of pictures that are not put out.
            everything = replace(index, count=len(index.sizes), silent=frozenset())
            if not rate_varies(everything.times(time_base)):
                return None
            with reported(self.source):
                index = packet_index(self._at_start()) or index
        times = index.times(time_base)
        return times if rate_varies(times) else None

    def _index_by_decoding(self) -> FrameIndex:
        held, stamps = 0, []
        for frame in frames_of(self._at_start()):
            stamps.append(frame.pts)
            held += sum(plane.buffer_size for plane in frame.planes)
            if held < _KEPT_BYTES:
                self._kept.append(frame)
        if held >= _KEPT_BYTES:
            self._kept.clear()
        avi = self.container == "avi"
        return FrameIndex(len(stamps), stamps=() if avi else stamps)

    def _decode(self, indices: NDArray[np.int64]) -> Pixels:
        scaler = Scaler(self.height, self.width)
        with reported(self.source):
            frames = np.empty((3, len(indices), self.height, self.width), dtype=np.uint8)
            row = dict(zip(indices.tolist(), range(len(indices)), strict=True))
            for number, frame in self._sound_frames(list(row)):
                scaler.write(frame, frames[:, row[number]])
        return frames.transpose(1, 2, 3, 0)

    def read_crops(
        self, clips: NDArray[np.int64], boxes: NDArray[np.int64], *, size: int
    ) -> Pixels:
        """See `Reader.read_crops`. Boxes are cut from the file's own pixels, before scaling."""
        if self._turned:
            return super().read_crops(clips, boxes, size=size)
        self.check_inside(clips)
        uses: dict[int, list[tuple[int, int]]] = {}
        for (view, place), number in np.ndenumerate(clips):
            uses.setdefault(int(number), []).append((view, place))
        sides = (self.height, self.width, self.height, self.width)
        cutters = [Cutter(box / sides, size=size) for box in boxes]
        with reported(self.source):
            views = np.empty((len(clips), 3, clips.shape[1], size, size), dtype=np.uint8)
            for number, frame in self._sound_frames(sorted(uses)):
                for view, place in uses[number]:
                    cutters[view].write(frame, views[view, :, place])
        return views

    def _sound_frames(self, wanted: Sequence[int]) -> Numbered:
        """The frames of rising numbers, some perhaps twice; VideoError for a damaged one."""
        found = set()
        for number, frame in self._frames(wanted):
            if frame.is_corrupt:
                raise VideoError(self.source.name, f"frame {number} is damaged")
            found.add(number)
            yield number, frame
        if len(found) < len(wanted):
            reason = f"frame {wanted[-1]} cannot be decoded, the file may be cut short"
            raise VideoError(self.source.name, reason)

    def _frames(self, wanted: Sequence[int]) -> Numbered:
        if self._kept:
            yield from ((number, self._kept[number]) for number in wanted)
            return
        if self._index.starts:
            # If it fails, decode in order: that gives each frame again, or finds what is wrong.
            with suppress(UnprovenError, av.error.FFmpegError):
                self._moved = True
                yield from after_jumps(self._video, wanted, self._index)
                return
            self._index = replace(self._index, starts=())
        yield from in_order(self._at_start(), wanted)

    def close(self) -> None:
        """Let go of the file."""
        self._kept.clear()
        if self._video is not None:
            self._video.container.close()
        self._video = None


# Files and streams --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Facts:
    """A file's header and first frame.

    Attributes:
        container: FFmpeg's name of the file's format.
        fps: 0 if the file has no rate.
        height, width: as displayed, in pixels; not always whole.
        orientation: of the first frame, which all have.
        notes: what the file asks for and is not done.
        ordinary: it asks for no orientation and no colours that other libraries may not know.
    """

    container: str
    fps: float
    height: float
    width: float
    orientation: Orientation
    notes: tuple[str, ...]
    ordinary: bool


@contextmanager
def reported(source: Source) -> Iterator[None]:
    """Turn FFmpeg's errors into VideoError."""
    try:
        yield
    except (av.error.FFmpegError, MemoryError) as error:
        reason = getattr(error, "strerror", None) or "it needs more memory than is available"
        raise VideoError(source.name, f"not a readable video ({reason})") from error


def open_stream(source: Source) -> Any:
    """The best video stream of a file, to be decoded by one thread; its `container` is open.

    Raises:
        VideoError: there is no such file, or no video in it that can be decoded.
    """
    source.check()
    with reported(source):
        # Some old files hold tags that are not UTF-8; nothing here needs them.
        container = av.open(source.as_argument(), metadata_errors="ignore")
        try:
            if container.format.name.endswith(_STILL_IMAGE_FORMATS):
                raise VideoError(source.name, "it is a still image, not a video")
            stream: Any = container.streams.best("video")
            if stream is None or stream.codec_context is None:
                raise VideoError(source.name, "it holds no video that can be decoded")
            if stream.disposition & Disposition.attached_pic:
                raise VideoError(source.name, "it holds no video, only the cover of its sound")
        except BaseException:
            container.close()
            raise
    # Videos are decoded in parallel processes, so threads within one would compete with them.
    stream.thread_type = "NONE"
    # By default FFmpeg's decoders conceal faults instead of reporting them.
    stream.codec_context.options = {
        "err_detect": "explode",
        "max_pixels": str(_MOST_PIXELS),
    }
    return stream


def frames_of(stream: Any) -> Iterator[Any]:
    """The frames of a stream from its start, as the decoder puts them out.

    A cut that copies packets leaves references to pictures that are gone. Decoders put out nothing
    before the first keyframe, so faults there are no damage; and the pictures after an H.264
    keyframe that is no IDR picture may still ask to forget some that were before it.
    """
    opened, forgiving = False, 0
    # PyAV's own generators keep some memory for good where they are left early and not closed.
    with closing(stream.container.demux(stream)) as packets:
        for packet in packets:
            if not opened and packet.is_keyframe:
                opened, forgiving = True, 0 if is_idr(packet, stream) else _MOST_REFERENCES
            try:
                frames = packet.decode()
            except av.error.InvalidDataError:
                if opened and not forgiving:
                    raise
                frames = []
            forgiving = max(0, forgiving - opened)
            yield from frames


def shows_size(stream: Any) -> bool:
    """Whether a file's header alone gives the size at which its frames are shown."""
    codec = stream.codec_context
    turned = (
        stream.container.format.name not in _NEVER_TURNED or codec.name in _TURNED_BY_THEMSELVES
    )
    return not turned and bool(codec.height and codec.width)


def facts_of(stream: Any, first: Any | None, *, pixels: PixelShape = "stored") -> Facts:
    """The facts of a stream; `first` is its first frame, None if the header `shows_size`."""
    shown = first or stream.codec_context
    height, width = float(shown.height), float(shown.width)
    orientation, angle = orientation_of(first) if first is not None else (AS_STORED, "")
    matrix = settle_colours(first) if first is not None else ""
    aspect, shape = stream.sample_aspect_ratio or Fraction(1), ""
    if aspect != 1 and pixels == "square":
        width *= float(aspect)  # rounded when it is scaled
    elif aspect != 1:
        ratio = f"{aspect.numerator}:{aspect.denominator}"
        shape = f"its pixels, {ratio}, are not square and are read as stored (DATA.PIXELS)"
    if orientation.transposed:
        height, width = width, height
    return Facts(
        container=stream.container.format.name,
        fps=float(stream.average_rate or stream.guessed_rate or 0),
        height=height,
        width=width,
        orientation=orientation,
        notes=tuple(note for note in (angle, matrix, shape) if note),
        ordinary=orientation == AS_STORED and not angle and not matrix,
    )


def first_frame(stream: Any, source: Source) -> Any:
    """The first frame of a stream at its start. Raises VideoError if it has none."""
    frame = next(frames_of(stream), None)
    if frame is None:
        raise VideoError(source.name, "no frame can be decoded")
    return frame


# Numbered frames ----------------------------------------------------------------------------------


class UnprovenError(Exception):
    """The frames may not have the numbers that they seem to have."""


def in_order(stream: Any, wanted: Sequence[int]) -> Numbered:
    """The frames of rising numbers, from a stream at its start. Exact for every file."""
    numbers = set(wanted)
    for number, frame in enumerate(frames_of(stream)):
        if number in numbers:
            yield number, frame
        if number == wanted[-1]:
            return


def after_jumps(stream: Any, wanted: Sequence[int], index: FrameIndex) -> Numbered:
    """The frames of rising numbers, each decoded from the last keyframe before it.

    Raises:
        UnprovenError: their numbers are in doubt. Frames that were yielded before may be wrong.
    """
    for start, numbers in _jumps(wanted, index.starts):
        stream.container.seek(start.latest, stream=stream)
        with closing(stream.container.demux(stream)) as packets:
            first = next(packets, None)
            found = _arrival(first, stream, start, index)
            yield from _after(stream, numbers, index, found, chain([first], packets))


def _jumps(wanted: Sequence[int], starts: Sequence[Start]) -> Iterator[tuple[Start, Sequence[int]]]:
    """Which frames to decode from which keyframe."""
    keys = [start.number for start in starts]
    begin, key = 0, bisect_right(keys, wanted[0]) - 1
    for place, number in enumerate(wanted):
        nearest = bisect_right(keys, number) - 1
        if nearest < 0:
            raise UnprovenError
        if place and keys[nearest] - wanted[place - 1] > _JUMP_WORTH:
            yield starts[key], wanted[begin:place]
            begin, key = place, nearest
    yield starts[key], wanted[begin:]


def _arrival(first: Any | None, stream: Any, start: Start, index: FrameIndex) -> Start:
    """Where a seek ended, by its first packet: at `start`, or at a keyframe before it."""
    at = getattr(first, index.clock, None), getattr(first, "pos", None)
    found = next((s for s in index.starts if (s.time, s.place) == at), None)
    if found is None or found.number > start.number or not is_clean_start(first, stream):
        raise UnprovenError
    return found


def _after(
    stream: Any, wanted: Sequence[int], index: FrameIndex, start: Start, packets: Iterator[Any]
) -> Numbered:
    """Frames after a seek: of those put out since, the k-th in time is the k-th frame."""
    ahead = wanted[-1] - start.number + 1
    ahead += _DEEPEST_ORDER if stream.codec_context.has_b_frames else 0
    run, times = _gather(packets, index, start, frames=ahead)
    if wanted[-1] - start.number >= len(times):
        raise UnprovenError
    numbers = {times[number - start.number]: number for number in wanted}
    last = times[wanted[-1] - start.number]
    for time, frame in zip(times, _decoded(run, stream), strict=False):
        if frame.pts != time:
            raise UnprovenError
        if time in numbers:
            yield numbers[time], frame
        if time == last:
            return
    raise UnprovenError


def _gather(
    packets: Iterator[Any], index: FrameIndex, start: Start, *, frames: int
) -> tuple[list[Any], list[int]]:
    """The packets of the next frames, and the times of those that are put out, rising."""
    run: list[Any] = []
    times: list[int] = []
    for packet in packets:
        if not packet.size:
            continue
        place = start.packet + len(run)
        if place >= len(index.sizes) or packet.size != index.sizes[place] or packet.pts is None:
            raise UnprovenError
        run.append(packet)
        if place not in index.silent:
            times.append(packet.pts)
        if len(times) == frames:
            break
    if len(set(times)) < len(times) or min(times) < run[0].pts:
        raise UnprovenError
    return run, sorted(times)


def _decoded(packets: Iterable[Any], stream: Any) -> Iterator[Any]:
    for packet in packets:
        yield from packet.decode()
    yield from stream.codec_context.decode(None)  # what it holds in the end
