"""Decoded frames to RGB planes of the size asked for, by FFmpeg."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from av.filter import Graph
from av.video.reformatter import VideoReformatter

from vidcsl.data.readers.reader import Pixels

# Planar, because FFmpeg writes planes three times as fast as interleaved pixels.
_FORMAT, _RGB_PLANES = "gbrp", (1, 2, 0)


class Scaler:
    """Whole frames to one size."""

    def __init__(self, height: int, width: int) -> None:
        self.height, self.width = height, width
        self._scaler = VideoReformatter()  # kept, for it is costly to set up

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
        box: (top, left, height, width) as shares of the frame. Its corner is rounded to a pixel of
            the frame's colour planes, which have half the size in most videos.
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
            round(share * side) for share, side in zip(self.box, sides, strict=True)
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
