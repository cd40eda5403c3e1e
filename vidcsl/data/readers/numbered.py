"""Decoded frames with their numbers: after jumps to keyframes where that is exact, or in order."""

from bisect import bisect_right, insort
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

from vidcsl.data.readers.index import FrameIndex, Start
from vidcsl.data.readers.starts import is_clean_start

# Decoding on over fewer frames than this takes no longer than a jump to a keyframe.
_JUMP_WORTH = 4

Numbered = Iterator[tuple[int, Any]]


class UnprovenError(Exception):
    """Nothing shows that the frames after a jump have the numbers they seem to have."""


def in_order(stream: Any, wanted: Sequence[int]) -> Numbered:
    """The frames of rising numbers, from a stream at its start. Exact for every file."""
    numbers = set(wanted)
    for number, frame in enumerate(stream.container.decode(stream)):
        if number in numbers:
            yield number, frame
        if number == wanted[-1]:
            return


def after_jumps(stream: Any, wanted: Sequence[int], index: FrameIndex) -> Numbered:
    """The frames of rising numbers, each decoded from the last keyframe before it.

    Raises:
        UnprovenError: their numbers are in doubt. Frames that were given before may be wrong.
    """
    for start, numbers in _jumps(wanted, index.starts):
        yield from _after(numbers, index.sizes, *_seek(stream, start, index))


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


def _seek(stream: Any, start: Start, index: FrameIndex) -> tuple[int, Iterator[Any]]:
    """Jump; the number of the packet that comes first, and the packets."""
    stream.container.seek(start.latest, stream=stream)
    packets = stream.container.demux(stream)
    first = next(packets, None)
    # The jump may have ended at an earlier keyframe; its time and place say at which.
    found = getattr(first, index.clock, None), getattr(first, "pos", None)
    number = next((s.number for s in index.starts if (s.time, s.place) == found), None)
    if number is None or number > start.number or not is_clean_start(first, stream):
        raise UnprovenError
    return number, chain([first], packets)


def _after(
    wanted: Sequence[int], sizes: Sequence[int], begun: int, packets: Iterator[Any]
) -> Numbered:
    """Frames after a jump: of all packets since, the k-th in time is the k-th frame."""
    numbers, number = set(wanted), begun
    times: list[int] = []
    for packet in packets:
        if packet.size:
            at = begun + len(times)
            if at >= len(sizes) or packet.size != sizes[at]:
                raise UnprovenError
            if packet.pts is None or (times and packet.pts < times[0]):
                raise UnprovenError
            insort(times, packet.pts)
        for frame in packet.decode():
            rank = number - begun
            if rank >= len(times) or frame.pts != times[rank]:
                raise UnprovenError
            if number in numbers:
                yield number, frame
            if number == wanted[-1]:
                return
            number += 1
    raise UnprovenError
