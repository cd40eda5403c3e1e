"""How many frames a stream holds, and from which of its packets decoding may begin.

A packet is a frame, save for those that are so small that they may stand for "no frame here", as
they do in the packed streams of old codecs. Where there are such, only decoding can tell.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from vidcsl.data.readers.source import Source

_FRAMELESS_BYTES = 16
_KEY, _DISCARD = 1, 2  # FFmpeg's flags of an entry
# Their packets are whole pictures however small: a skipped picture takes a few bytes.
_FRAME_A_PACKET = ("h264", "hevc", "vp9", "av1", "libdav1d", "gif", "mjpeg")
# Their headers list every packet, and its place or that of the few bytes ahead of it; the headers
# of others name keyframes only, or nothing.
_COMPLETE_INDEX = {"avi": 8, "mov,mp4,m4a,3gp,3g2,mj2": 0}


class Start(NamedTuple):
    """A keyframe's packet.

    Its number, which is its frame's; its time; its place in the file; and the latest time of a
    packet before the next keyframe, from which a jump back leads here.
    """

    number: int
    time: int
    place: int
    latest: int


@dataclass(frozen=True)
class FrameIndex:
    """The packets of a stream.

    Attributes:
        count: frames that its decoder puts out.
        sizes: of the packets, in bytes.
        starts: the keyframes' packets, rising; none where packets and frames do not correspond.
        clock: the time stamp that `starts` speak of, "pts" (shown at) or "dts" (decoded at).
    """

    count: int
    sizes: Sequence[int] = ()
    starts: tuple[Start, ...] = ()
    clock: str = "pts"


def header_index(stream: Any, source: Source) -> FrameIndex | None:
    """The index that the file's header holds; None where it holds none, or none to be trusted."""
    container = stream.container.format.name
    if container not in _COMPLETE_INDEX:
        return None
    entries = [(e.timestamp, e.pos, e.size, e.flags) for e in stream.index_entries]
    if not entries or len(entries) != stream.frames:
        return None
    times, places, sizes, flags = np.array(entries, dtype=np.int64).T
    ends = places + sizes
    # A header may promise more than there is, as that of a file cut short does.
    if (
        sizes.min() < _smallest_frame(stream)
        or ends.max() > source.size
        or (flags & _DISCARD).any()
    ):
        return None
    order = places.argsort()
    if (ends[order][:-1] > places[order][1:]).any():
        return FrameIndex(len(sizes), sizes.tolist())  # damaged: packets overlap
    ahead, keys = _COMPLETE_INDEX[container], (flags & _KEY) > 0
    starts = _starts(times.tolist(), (places + ahead).tolist(), keys.tolist())
    return FrameIndex(len(sizes), sizes.tolist(), starts, clock="dts")


def packet_index(stream: Any) -> FrameIndex | None:
    """The index from one pass over the packets of a stream at its start.

    None where only decoding can tell how many frames there are.
    """
    smallest, hidden = _smallest_frame(stream), stream.codec_context.name == "vp8"
    frames = 0
    sizes, times, places, keys = [], [], [], []
    for packet in stream.container.demux(stream):
        if not packet.size:  # the last "packet" tells the decoder to give out what it holds
            continue
        if packet.size < smallest:
            return None
        sizes.append(packet.size)
        times.append(packet.pts)
        places.append(packet.pos)
        keys.append(packet.is_keyframe)
        # VP8 has pictures that are only referred to; a bit of the first byte says so.
        frames += bytes(packet)[0] >> 4 & 1 if hidden else 1
    if not frames:
        return None
    # An AVI file whose own index is not to be trusted is damaged: no jumps there.
    whole = frames == len(times) and stream.container.format.name != "avi"
    return FrameIndex(frames, sizes, _starts(times, places, keys) if whole else ())


def _starts(
    times: Sequence[int | None], places: Sequence[int | None], keys: Sequence[bool]
) -> tuple[Start, ...]:
    """The keyframes among packets; none where time and place do not tell the packets apart."""
    numbers = [number for number, key in enumerate(keys) if key]
    known = [time for time in times if time is not None]
    found = [place for place in places if place is not None]
    if not numbers or len({*known}) < len(times) or len({*found}) < len(places):
        return ()
    ends = [*numbers[1:], len(known)]
    return tuple(
        Start(begin, known[begin], found[begin], max(known[begin:end]))
        for begin, end in zip(numbers, ends, strict=True)
    )


def _smallest_frame(stream: Any) -> int:
    return 1 if stream.codec_context.name in _FRAME_A_PACKET else _FRAMELESS_BYTES
