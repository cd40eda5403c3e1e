"""Decoded frames with their numbers: after jumps to keyframes where that is exact, or in order."""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from itertools import chain
from typing import Any

from av.video.frame import PictureType

from vidcsl.data.readers import h264
from vidcsl.data.readers.container import frames_of
from vidcsl.data.readers.index import FrameIndex, Start
from vidcsl.data.readers.starts import is_clean_start

# Decoding on over fewer frames than this takes no longer than a jump to a keyframe.
_JUMP_WORTH = 4
# Pictures that H.264 and H.265 allow to come before one that is shown earlier.
_DEEPEST_ORDER = 16

Numbered = Iterator[tuple[int, Any]]


class UnprovenError(Exception):
    """Nothing shows that the frames have the numbers they seem to have."""


def in_order(stream: Any, wanted: Sequence[int]) -> Numbered:
    """The frames of rising numbers, from a stream at its start. Exact for every file."""
    numbers = set(wanted)
    for number, frame in enumerate(frames_of(stream)):
        if number in numbers:
            yield number, frame
        if number == wanted[-1]:
            return


def past_between(stream: Any, wanted: Sequence[int], index: FrameIndex) -> Numbered:
    """As `in_order`, but the B-pictures that the index names are decoded only where wanted.

    Raises:
        UnprovenError: the file is not what the index says. Frames given before may be wrong.
    """
    numbers, number = set(wanted), 0
    between, passed = set(index.between.values()), _passed(index, numbers)
    with closing(stream.container.demux(stream)) as packets:
        for place, packet in enumerate(packet for packet in packets if packet.size):
            if place >= len(index.sizes) or packet.size != index.sizes[place]:
                raise UnprovenError
            stream.codec_context.skip_frame = "NONREF" if place in passed else "DEFAULT"
            for frame in packet.decode():
                if (number in between) != (frame.pict_type == PictureType.B):
                    raise UnprovenError
                if number in numbers:
                    yield number, frame
                number += 1
            number += place in passed
            if number > wanted[-1]:
                return
    for frame in stream.codec_context.decode(None):  # what it holds in the end
        if number in numbers:
            yield number, frame
        number += 1


def _passed(index: FrameIndex, numbers: set[int]) -> set[int]:
    """Packets whose picture need not be decoded; one that brings the next picture is decoded too
    where that is."""
    passed: set[int] = set()
    for packet, number in sorted(index.between.items(), reverse=True):
        brings_next = packet + 1 in index.between
        if number not in numbers and (not brings_next or packet + 1 in passed):
            passed.add(packet)
    return passed


def after_jumps(stream: Any, wanted: Sequence[int], index: FrameIndex) -> Numbered:
    """The frames of rising numbers, each decoded from the last keyframe before it.

    Raises:
        UnprovenError: their numbers are in doubt. Frames that were given before may be wrong.
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
    """Where a jump ended, by its first packet: at `start`, or at a keyframe before it."""
    at = getattr(first, index.clock, None), getattr(first, "pos", None)
    found = next((s for s in index.starts if (s.time, s.place) == at), None)
    if found is None or found.number > start.number or not is_clean_start(first, stream):
        raise UnprovenError
    return found


def _after(
    stream: Any, wanted: Sequence[int], index: FrameIndex, start: Start, packets: Iterator[Any]
) -> Numbered:
    """Frames after a jump: of all packets since, the k-th in time is the k-th frame."""
    codec = stream.codec_context
    reordered = codec.has_b_frames
    ahead = wanted[-1] - start.number + 1 + (_DEEPEST_ORDER if reordered else 0)
    run, times = _gather(packets, index, start, frames=ahead)
    if wanted[-1] - start.number >= len(times):
        raise UnprovenError
    numbers = {times[number - start.number]: number for number in wanted}
    last = times[wanted[-1] - start.number]
    if reordered and codec.name == "h264":
        spare = h264.spare_times(run, stream) - numbers.keys()
        run = [packet for packet in run if packet.pts not in spare]
        times = [time for time in times if time not in spare]
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
    """The packets of the next frames, and the frames' times, rising."""
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
    if len(set(times)) < len(times) or min(times) < times[0]:
        raise UnprovenError
    return run, sorted(times)


def _decoded(packets: Iterable[Any], stream: Any) -> Iterator[Any]:
    for packet in packets:
        yield from packet.decode()
    yield from stream.codec_context.decode(None)  # what it holds in the end
