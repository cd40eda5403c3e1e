"""The reader that is always there, and strict: what FFmpeg finds damaged is an error."""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from vidcsl.data.readers.container import (
    facts_of,
    first_frame,
    frames_of,
    open_stream,
    reported,
    shows_size,
)
from vidcsl.data.readers.index import FrameIndex, header_index, packet_index
from vidcsl.data.readers.numbered import (
    Numbered,
    UnprovenError,
    after_jumps,
    in_order,
    past_between,
)
from vidcsl.data.readers.reader import Cutter, Pixels, Reader, Scaler, Source, scaled_size
from vidcsl.errors import VideoError

# Frames that had to be decoded to be counted are kept up to this size, and not decoded again.
_KEPT_BYTES = 256 * 2**20


class PyavReader(Reader):
    """Opens a file once, looks at its packets once, and decodes no more than it must.

    Decoding begins at the last keyframe that is a clean start, and in order from the first frame
    where there is none or where its frames' numbers would be in doubt.

    Args:
        source: the video.
        short_side: see `open_reader`.

    Raises:
        VideoError: it cannot be opened, or no frame can be decoded.
    """

    name = "pyav"

    def __init__(self, source: Source, *, short_side: int | None = None) -> None:
        super().__init__(source)
        self._video, self._moved = open_stream(source), False
        self._kept: list[Any] = []
        with reported(source):
            index = header_index(self._video, source) or packet_index(self._at_start())
            self._index = index or FrameIndex(self._count_by_decoding())
            first = self._first_frame()  # may open the file anew
            facts = facts_of(self._video, first)
            self._turned = first is not None and first.rotation != 0
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

    def _count_by_decoding(self) -> int:
        count = held = 0
        for frame in frames_of(self._at_start()):
            count += 1
            held += sum(plane.buffer_size for plane in frame.planes)
            if held < _KEPT_BYTES:
                self._kept.append(frame)
        if held >= _KEPT_BYTES:
            self._kept.clear()
        return count

    def _first_frame(self) -> Any | None:
        if shows_size(self._video):
            return None
        return self._kept[0] if self._kept else first_frame(self._at_start(), self.source)

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
        """As every reader's, but cut out of the frames of the file, before they are scaled."""
        if self._turned:
            return super().read_crops(clips, boxes, size=size)
        self._check_inside(clips)
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
        """All frames of rising numbers, some perhaps twice, or VideoError."""
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
        if self._index.starts or self._index.between:
            # Otherwise in order, where each frame is given anew or what is wrong comes to light.
            with suppress(UnprovenError, av.error.FFmpegError):
                yield from self._quickly(wanted)
                return
            self._index = FrameIndex(self.num_frames)
        yield from in_order(self._at_start(), wanted)

    def _quickly(self, wanted: Sequence[int]) -> Numbered:
        if self._index.starts:
            self._moved = True
            return after_jumps(self._video, wanted, self._index)
        return past_between(self._at_start(), wanted, self._index)

    def close(self) -> None:
        """Let go of the file."""
        self._kept.clear()
        if self._video is not None:
            self._video.container.close()
        self._video = None
