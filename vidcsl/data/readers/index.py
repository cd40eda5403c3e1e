"""How many frames a stream holds, and from which of its packets decoding may begin.

A packet is a frame, save for those that are so small that they may stand for "no frame here", as
they do in the packed streams of old codecs. Where there are such, only decoding can tell.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from vidcsl.data.readers.source import Source

_FRAMELESS_BYTES = 16
# Their packets are whole pictures however small: a skipped picture takes a few bytes.
_FRAME_A_PACKET = ("h264", "hevc", "vp9", "av1", "libdav1d", "gif", "mjpeg")
# Their headers list every packet; others name keyframes only, or nothing.
_COMPLETE_INDEX = ("avi", "mov,mp4,m4a,3gp,3g2,mj2")


class Start(NamedTuple):
    """A keyframe's packet.

    Its number, which is its frame's; its time; and the latest time of a packet before the next
    keyframe, from which a jump back leads here.
    """

    number: int
    time: int
    latest: int


@dataclass(frozen=True)
class FrameIndex:
    """The packets of a stream.

    Attributes:
        count: frames that its decoder puts out.
        starts: the keyframes' packets, rising; none where packets and frames do not correspond.
        clock: the time stamp that `starts` speak of, "pts" (shown at) or "dts" (decoded at).
    """

    count: int
    starts: tuple[Start, ...] = ()
    clock: str = "pts"


def header_index(stream: Any, source: Source) -> FrameIndex | None:
    """The index that the file's header holds; None where it holds none, or none to be trusted."""
    if stream.container.format.name not in _COMPLETE_INDEX:
        return None
    entries = list(stream.index_entries)
    # A header may promise more than there is, as that of a file cut short does.
    if (
        not entries
        or len(entries) != stream.frames
        or min(entry.size for entry in entries) < _smallest_frame(stream)
        or max(entry.pos + entry.size for entry in entries) > source.size
        or any(entry.is_discard for entry in entries)
    ):
        return None
    starts = _starts([e.timestamp for e in entries], [e.is_keyframe for e in entries])
    return FrameIndex(len(entries), starts, clock="dts")


def packet_index(stream: Any) -> FrameIndex | None:
    """The index from one pass over the packets of a stream at its start.

    None where only decoding can tell how many frames there are.
    """
    smallest, hidden = _smallest_frame(stream), stream.codec_context.name == "vp8"
    frames = 0
    times, keys = [], []
    for packet in stream.container.demux(stream):
        if not packet.size:  # the last "packet" tells the decoder to give out what it holds
            continue
        if packet.size < smallest:
            return None
        times.append(packet.pts)
        keys.append(packet.is_keyframe)
        # VP8 has pictures that are only referred to; a bit of the first byte says so.
        frames += bytes(packet)[0] >> 4 & 1 if hidden else 1
    if not frames:
        return None
    return FrameIndex(frames, _starts(times, keys) if frames == len(times) else ())


def _starts(times: Sequence[int | None], keys: Sequence[bool]) -> tuple[Start, ...]:
    """The keyframes among packets; none where the times do not tell the packets apart."""
    known = [time for time in times if time is not None]
    if len(set(known)) < len(times):
        return ()
    numbers = [number for number, key in enumerate(keys) if key]
    ends = [*numbers[1:], len(known)]
    return tuple(
        Start(begin, known[begin], max(known[begin:end]))
        for begin, end in zip(numbers, ends, strict=True)
    )


def _smallest_frame(stream: Any) -> int:
    return 1 if stream.codec_context.name in _FRAME_A_PACKET else _FRAMELESS_BYTES
