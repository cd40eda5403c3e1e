"""How many frames a file's decoder puts out, and from which packets decoding may begin.

Frame k of a file is the k-th frame that its decoder puts out when it goes through the whole file
in order. That is not the k-th packet:

- an edit list makes the decoder drop pictures that it needs but that are not shown, as in every
  MP4 file that was cut without re-encoding (FFmpeg flags their packets `discard`);
- pictures ahead of the first keyframe, in order or in time, refer to what a cut has removed;
- VP8 and VP9 have packets that are only referred to;
- AVI holds packets that stand in for a picture that came with the packet before.

An index counts packets only if none of this applies or all of it is known. Otherwise it is None,
and the file has to be decoded to be counted.
"""

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vidcsl.data.readers.reader import Source

# Their packets are pictures however small: a skipped picture takes a few bytes. Elsewhere packets
# as small as this may stand for "no frame here".
_FRAME_A_PACKET = ("h264", "hevc", "vp9", "av1", "libdav1d", "gif", "mjpeg")
_FRAMELESS_BYTES = 16
_KEY, _DISCARD = 1, 2  # FFmpeg's flags of an index entry
# Their headers list every packet, and its place or that of the few bytes ahead of it; the headers
# of others name keyframes only, or nothing.
_COMPLETE_INDEX = {"avi": 8, "mov,mp4,m4a,3gp,3g2,mj2": 0}
# Larger files are decoded rather than held in memory.
_MOST_BYTES = 2**28


class Start(NamedTuple):
    """A keyframe's packet.

    The number of the first frame that is put out from here on; the packet's own number; its time;
    its place in the file; and the latest time of a packet before the next keyframe, from which a
    jump back leads here.
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
        starts: the keyframes' packets, rising; none if packets and frames do not correspond.
        clock: the kind of time stamps in `starts`, "pts" (shown at) or "dts" (decoded at).
        silent: packets whose picture is not put out; known only with `starts`.
        stamps: the packets' time stamps of that kind; empty where they do not show the time.
    """

    count: int
    sizes: Sequence[int] = ()
    starts: tuple[Start, ...] = ()
    clock: str = "pts"
    silent: frozenset[int] = frozenset()
    stamps: Sequence[Any] = ()

    def times(self, time_base: Fraction) -> NDArray[np.float64] | None:
        """When each frame is shown, in seconds after the first; None if that is not known."""
        shown = [time for number, time in enumerate(self.stamps) if number not in self.silent]
        if len(shown) != self.count or None in shown:
            return None
        found = np.sort(np.array(shown, dtype=np.float64))
        return (found - found[:1]) * float(time_base)


# Longer stands for a leap of the clock, as in recordings of broadcasts, rather than for a picture.
_LONGEST_SHOWN = 60.0  # seconds


def rate_varies(times: NDArray[np.float64] | None) -> bool:
    """Whether some frame is shown a frame or more beside its place at the average rate."""
    if times is None or len(times) < 3 or times[-1] <= 0:
        return False
    gap = times[-1] / (len(times) - 1)
    leaps = bool(np.diff(times).max() > _LONGEST_SHOWN)
    return not leaps and bool(np.abs(times - gap * np.arange(len(times))).max() > gap)


def header_index(stream: Any, source: Source) -> FrameIndex | None:
    """The index in the file's header; None if it has none, or none that can be trusted."""
    container, codec = stream.container.format.name, stream.codec_context
    if container not in _COMPLETE_INDEX:
        return None
    entries = [(e.timestamp, e.pos, e.size, e.flags) for e in stream.index_entries]
    if not entries or len(entries) != stream.frames:
        return None
    times, places, sizes, flags = np.array(entries, dtype=np.int64).T
    ends = places + sizes
    # A header may promise more than there is, as that of a file cut short does.
    if ends.max() > source.size:
        return None
    order = places.argsort()
    overlap = bool((ends[order][:-1] > places[order][1:]).any())  # in damaged files
    begins, keys = (places + _COMPLETE_INDEX[container]).tolist(), (flags & _KEY) > 0
    packets = Packets(times.tolist(), begins, sizes.tolist(), keys.tolist())
    small = sizes.min() < _smallest_frame(stream)
    if container == "avi":
        if codec.name == "mpeg4" and (small or codec.has_b_frames):
            return None if overlap else _mpeg4_index(stream, source, packets)
        if small or (flags & _DISCARD).any():
            return None
        starts = () if overlap else packets.starts()
        return FrameIndex(len(sizes), packets.sizes, starts, clock="dts")
    # Only a stream whose first packet needs nothing before it puts out a frame for each packet;
    # and only the packets themselves show what VP8 and VP9 hide, and when others are shown.
    reordered = bool(codec.has_b_frames) and codec.name not in _UNITS
    if small or overlap or reordered or codec.name in ("vp8", "vp9") or not keys[0]:
        return None
    if not is_idr(source.read_at(int(places[0]), int(sizes[0])), stream):
        return None
    silent = frozenset(np.flatnonzero(flags & _DISCARD).tolist())
    starts = packets.starts(silent)
    count = len(sizes) - len(silent)
    return FrameIndex(
        count, packets.sizes, starts, clock="dts", silent=silent, stamps=packets.times
    )


def packet_index(stream: Any) -> FrameIndex | None:
    """The index from one pass over the packets of a stream at its start.

    None if only decoding can count the frames.
    """
    codec, container = stream.codec_context, stream.container.format.name
    smallest, shown = _smallest_frame(stream), _SHOWN.get(codec.name)
    packets, silent, clean = Packets([], [], [], []), set(), True
    with closing(stream.container.demux(stream)) as demuxed:
        for packet in demuxed:
            if not packet.size:  # the last "packet" tells the decoder to give out what it holds
                continue
            if packet.size < smallest:
                return None
            number = len(packets.sizes)
            if not number:
                clean = packet.is_keyframe
                clean &= codec.name != "h264" or is_idr(packet, stream)
            if packet.is_discard or (shown and not shown(bytes(packet))):
                silent.add(number)
            packets.times.append(packet.pts)
            packets.places.append(packet.pos)
            packets.sizes.append(packet.size)
            packets.keys.append(packet.is_keyframe)
    put_out = [time for number, time in enumerate(packets.times) if number not in silent]
    known = [time for time in put_out if time is not None]
    if not put_out or not clean:
        return None
    if packets.times[0] is not None and min(known, default=0) < packets.times[0]:
        return None  # pictures that are shown before the keyframe that they refer to
    if silent and codec.name not in (*_FRAME_A_PACKET, "vp8") and codec.has_b_frames:
        return None
    # Places that fall back are those of an edit list that shows a stretch more than once.
    places = [place for place in packets.places if place is not None]
    if container in _COMPLETE_INDEX and silent and sorted({*places}) != places:
        return None
    # An AVI file whose own index is not to be trusted is damaged: no jumps there.
    starts = () if container == "avi" else packets.starts(frozenset(silent))
    stamps = () if container == "avi" else packets.times
    return FrameIndex(len(put_out), packets.sizes, starts, silent=frozenset(silent), stamps=stamps)


class Packets(NamedTuple):
    """What is known of each packet, in the order of decoding."""

    times: list[Any]  # int or None
    places: list[Any]  # int or None
    sizes: list[int]
    keys: list[bool]

    def starts(self, silent: frozenset[int] = frozenset()) -> tuple[Start, ...]:
        """The keyframes; none if packets share a time or a place, which would confuse seeks."""
        keys = [packet for packet, key in enumerate(self.keys) if key]
        distinct = all(
            None not in column and len({*column}) == len(column)
            for column in (self.times, self.places)
        )
        if not keys or not distinct:
            return ()
        put_out = np.ones(len(self.keys), dtype=np.int64)
        put_out[list(silent)] = 0
        before = np.concatenate([[0], put_out.cumsum()]).tolist()
        return tuple(
            Start(
                number=before[begin],
                packet=begin,
                time=self.times[begin],
                place=self.places[begin],
                latest=max(self.times[begin:end]),
            )
            for begin, end in zip(keys, [*keys[1:], len(self.keys)], strict=True)
        )


def _smallest_frame(stream: Any) -> int:
    return 1 if stream.codec_context.name in _FRAME_A_PACKET else _FRAMELESS_BYTES


def _vp9_shown(packet: bytes) -> bool:
    """Whether a packet's last picture is shown (VP9 bitstream specification, 6.2 and annex B).

    Pictures that are only referred to share a "superframe" with one that is shown.
    """
    mark = packet[-1]
    if mark & 0xE0 == 0xC0:  # a superframe, whose sizes stand between two equal marks
        pictures, width = (mark & 7) + 1, (mark >> 3 & 3) + 1
        index = packet[-2 - pictures * width :]
        if len(index) == 2 + pictures * width and index[0] == mark:
            sizes = [
                int.from_bytes(index[1 + k * width : 1 + (k + 1) * width], "little")
                for k in range(pictures)
            ]
            packet = packet[sum(sizes[:-1]) :]
    bits = format(packet[0], "08b")
    profile = int(bits[3] + bits[2], 2)
    at = 5 if profile == 3 else 4
    return bits[at] == "1" or bits[at + 2 : at + 3] == "1"  # an existing one, or this one


_SHOWN = {"vp8": lambda packet: bool(packet[0] >> 4 & 1), "vp9": _vp9_shown}


# Where decoding may begin ------------------------------------------------------------------------


def is_clean_start(packet: Any, stream: Any) -> bool:
    """Whether all that is decoded from this keyframe's packet on depends on nothing before it.

    The container's flag does not suffice: it also stands on pictures after which others still
    refer to what was before.
    """
    codec = stream.codec_context
    if not packet.is_keyframe:
        return False
    if codec.name in _UNITS:
        return is_idr(packet, stream)
    if codec.name == "mpeg4":
        # With B-pictures, those right after the keyframe refer to the picture before it.
        kinds = _kinds(bytes(packet))
        return kinds[:1] == [_INTRA] and not codec.has_b_frames
    # Their keyframes reset the decoder, and one that is none is refused as the first packet.
    return codec.name in ("vp8", "vp9", "libdav1d", "mjpeg")


class _Units(NamedTuple):
    """The units (NAL) of H.264 or H.265: what their headers contain."""

    width_at: int  # where the file's header has the size of a unit's length
    shift: int  # of the unit's kind in its first byte
    mask: int
    slices: range  # kinds that hold parts of a picture
    idr: tuple[int, ...]  # those of a picture that resets the decoder


_UNITS = {
    "h264": _Units(4, 0, 31, range(1, 6), (5,)),
    "hevc": _Units(21, 1, 63, range(32), (19, 20)),
}


def is_idr(packet: Any, stream: Any) -> bool:
    """Whether an H.264 or H.265 packet resets the decoder; True for other codecs."""
    units = _UNITS.get(stream.codec_context.name)
    if units is None:
        return True
    heads = _unit_heads(
        bytes(packet), stream.codec_context.extradata or b"", width_at=units.width_at
    )
    kinds = (head >> units.shift & units.mask for head in heads)
    return next((kind for kind in kinds if kind in units.slices), None) in units.idr


def _unit_heads(data: bytes, header: bytes, *, width_at: int) -> Iterator[int]:
    """The first byte of each unit."""
    if len(header) <= width_at or header[0] != 1:  # units are set apart by start codes
        yield from (unit[0] for unit in data.split(b"\x00\x00\x01")[1:] if unit)
        return
    width, at = (header[width_at] & 3) + 1, 0
    while at + width < len(data):
        yield data[at + width]
        at += width + int.from_bytes(data[at : at + width], "big")


# MPEG-4 (part 2) in AVI --------------------------------------------------------------------------

# AVI has no place for the order in which pictures are shown, so encoders pack a B-picture into the
# packet of the picture that it refers to, and send a stand-in when its turn comes: a P-picture "not
# coded", or a single byte. FFmpeg's decoder keeps the packed picture and decodes it in place of the
# next packet (`h263dec.c`, `mpeg4videodec.c`); these are its rules, so far as they leave no doubt.
# To count such files by decoding them makes a training sample of UCF101 a quarter slower.

# Two bits after the start code give the kind of a picture.
_PICTURE = re.compile(rb"\x00\x00\x01\xb6(.)", re.DOTALL)
_PACKED = re.compile(rb"DivX\d+(?:Build|b)\d+p")
_INTRA, _PREDICTED, _BETWEEN = 0, 1, 2
# What decoders take for a stand-in, in bytes; a coded picture has a bit a macroblock or more.
_STAND_IN = 19


def _mpeg4_index(stream: Any, source: Source, packets: Packets) -> FrameIndex | None:
    """The index of an AVI file of which not every packet is a frame of its own."""
    if source.size > _MOST_BYTES:
        return None
    data = source.read()
    parts = (data[at : at + size] for at, size in zip(packets.places, packets.sizes, strict=True))
    made = mpeg4_pictures(parts, stream)
    if made is None:
        return None
    if stream.codec_context.has_b_frames:  # their time stamps do not show the order
        return FrameIndex(len(made), packets.sizes)
    silent = frozenset(range(len(packets.sizes))).difference(made)
    return FrameIndex(len(made), packets.sizes, packets.starts(silent), clock="dts", silent=silent)


def mpeg4_pictures(packets: Iterable[bytes], stream: Any) -> list[int] | None:
    """The packets with which a picture is decoded; None where that is in doubt."""
    codec = stream.codec_context
    packed = bool(_PACKED.search(codec.extradata or b""))
    bits = math.ceil(codec.width / 16) * math.ceil(codec.height / 16)
    made, waiting, reordered = [], False, False
    for number, packet in enumerate(packets):
        kinds = _kinds(packet)
        small = len(packet) <= _STAND_IN
        not_coded = small and 8 * len(packet) < bits and kinds == [_PREDICTED]
        stands_in = packet == b"\x7f" or not_coded
        moves_up = waiting and kinds == [_BETWEEN] and not small
        two = packed and len(kinds) == 2 and kinds[1] == _BETWEEN != kinds[0]
        # What waited is decoded in place of a stand-in, or of one of its kind, which then waits.
        if (stands_in or moves_up) if waiting else (two or (len(kinds) == 1 and not small)):
            made.append(number)
        elif waiting or not stands_in:
            return None
        waiting, reordered = moves_up or len(kinds) == 2, reordered or _BETWEEN in kinds
        if number == 0 and kinds[:1] != [_INTRA]:
            return None  # what refers to a picture before the first is not shown
    return made if made and (codec.has_b_frames or not reordered) else None


def _kinds(packet: bytes) -> list[int]:
    return [head[0] >> 6 for head in _PICTURE.findall(packet)]
