"""How many frames a stream holds, and from which of its packets decoding may begin.

A packet is a frame, save for those that are so small that they may stand for "no frame here", as
they do in the packed streams of old codecs. Of MPEG-4 in AVI `mpeg4.py` tells the frames apart;
elsewhere, where there are such packets, only decoding can tell.
"""

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from vidcsl.data.readers import mpeg4
from vidcsl.data.readers.reader import Source

_FRAMELESS_BYTES = 16
_KEY, _DISCARD = 1, 2  # FFmpeg's flags of an entry
# Their packets are whole pictures however small: a skipped picture takes a few bytes.
_FRAME_A_PACKET = ("h264", "hevc", "vp9", "av1", "libdav1d", "gif", "mjpeg")
# Their headers list every packet, and its place or that of the few bytes ahead of it; the headers
# of others name keyframes only, or nothing.
_COMPLETE_INDEX = {"avi": 8, "mov,mp4,m4a,3gp,3g2,mj2": 0}
# Larger files are decoded rather than held in memory.
_MOST_BYTES = 2**28


class Start(NamedTuple):
    """A keyframe's packet.

    Its frame's number; its own; its time; its place in the file; and the latest time of a packet
    before the next keyframe, from which a jump back leads here.
    """

    number: int
    packet: int
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
        silent: packets that make no frame, where there are `starts`.
        between: frames to which no other refers, by the packet that makes them, where `sizes` are
            those of all packets and each other picture is decoded in any case.
    """

    count: int
    sizes: Sequence[int] = ()
    starts: tuple[Start, ...] = ()
    clock: str = "pts"
    silent: frozenset[int] = frozenset()
    between: Mapping[int, int] = field(default_factory=dict)


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
    if ends.max() > source.size or (flags & _DISCARD).any():
        return None
    order = places.argsort()
    overlap = (ends[order][:-1] > places[order][1:]).any()  # in damaged files
    begins, keys = places + _COMPLETE_INDEX[container], (flags & _KEY) > 0
    columns = times.tolist(), begins.tolist(), sizes.tolist(), keys.tolist()
    small = sizes.min() < _smallest_frame(stream)
    unequal = small or stream.codec_context.has_b_frames  # packets and frames
    if unequal and container == "avi" and stream.codec_context.name == "mpeg4":
        return None if overlap else _mpeg4_index(stream, source, *columns)
    if small:
        return None
    starts = () if overlap else _starts(*columns[:2], columns[3])
    return FrameIndex(len(sizes), columns[2], starts, clock="dts")


def _mpeg4_index(
    stream: Any,
    source: Source,
    times: Sequence[int],
    begins: Sequence[int],
    sizes: Sequence[int],
    keys: Sequence[bool],
) -> FrameIndex | None:
    """The index of an AVI file of which not every packet is a frame of its own."""
    if source.size > _MOST_BYTES:
        return None
    data = source.read()
    packets = (data[begin : begin + size] for begin, size in zip(begins, sizes, strict=True))
    made = mpeg4.pictures(packets, stream)
    if made is None:
        return None
    if stream.codec_context.has_b_frames:
        numbers = zip(made, mpeg4.shown(made), strict=True)
        between = {picture.packet: number for picture, number in numbers if picture.between}
        return FrameIndex(len(made), sizes, between=between)
    silent = frozenset(range(len(sizes))).difference(picture.packet for picture in made)
    starts = _starts(times, begins, keys, silent=silent)
    return FrameIndex(len(made), sizes, starts, clock="dts", silent=silent)


def packet_index(stream: Any) -> FrameIndex | None:
    """The index from one pass over the packets of a stream at its start.

    None where only decoding can tell how many frames there are.
    """
    smallest, hidden = _smallest_frame(stream), stream.codec_context.name == "vp8"
    frames = 0
    sizes, times, places, keys = [], [], [], []
    with closing(stream.container.demux(stream)) as packets:
        for packet in packets:
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
    times: Sequence[int | None],
    places: Sequence[int | None],
    keys: Sequence[bool],
    *,
    silent: frozenset[int] = frozenset(),
) -> tuple[Start, ...]:
    """The keyframes among packets; none where time and place do not tell the packets apart."""
    packets = [packet for packet, key in enumerate(keys) if key and packet not in silent]
    known = [time for time in times if time is not None]
    found = [place for place in places if place is not None]
    if not packets or len({*known}) < len(times) or len({*found}) < len(places):
        return ()
    ends = [*packets[1:], len(known)]
    return tuple(
        Start(
            number=begin - sum(packet < begin for packet in silent),
            packet=begin,
            time=known[begin],
            place=found[begin],
            latest=max(known[begin:end]),
        )
        for begin, end in zip(packets, ends, strict=True)
    )


def _smallest_frame(stream: Any) -> int:
    return 1 if stream.codec_context.name in _FRAME_A_PACKET else _FRAMELESS_BYTES
