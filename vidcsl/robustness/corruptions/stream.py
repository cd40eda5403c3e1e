"""Damage to the coded stream of a clip, which is then decoded with the decoder's concealment.

The clip is coded by H.264 with FFmpeg's default quality, damaged in memory, and decoded. A frame
that the decoder cannot give back is replaced by the last one that it could, and counted. Before
the first good frame that one stands in; where nothing at all can be decoded the clip is black.
The decoder knows the stream's parameters from the start, as the published code damages none of
them. Damage that a longer video would have suffered before the clip is not seen.
"""

import io
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import NamedTuple

import av
import numpy as np
from av.codec.context import Flags
from numpy.typing import NDArray
from torch import Tensor

from vidcsl.robustness.corruptions import codec
from vidcsl.robustness.corruptions.codec import FRAMES_PER_SECOND, Frames, each_clip
from vidcsl.robustness.corruptions.digital import SOURCE_QUALITY
from vidcsl.robustness.corruptions.draws import Generators, random_bits

# Seven packets of a transport stream fill what one datagram of a common network can carry.
_DATAGRAM = 7 * 188
_TICKS = 90_000 // FRAMES_PER_SECOND  # of a transport stream's clock, from frame to frame
_LEAD = 16  # frames by which it starts late, more than any are reordered
_SLICE_BYTES = "1200"
_SLICES, _PARAMETERS = (1, 5), (7, 8)  # types of H.264's NAL units
_START = b"\x00\x00\x01"


class Recovered(NamedTuple):
    """Clips, and of each the number of frames that could not be recovered: int64 `[N]`."""

    clips: Tensor
    repeated: Tensor


def bit_error(clips: Tensor, *, generators: Generators, bytes_per_error: int) -> Recovered:
    """On average one of `bytes_per_error` bytes is overwritten by a random one.

    The published code runs FFmpeg's filter `noise`, which also overwrites one byte of so many, at
    places that depend on the bytes before; here chance chooses them.
    """

    def hit(data: bytes, generator: np.random.Generator) -> bytes:
        bits = random_bits((len(data),), generator=generator, kind=np.uint64)
        chosen = _uniform(bits) < 1 / bytes_per_error
        return np.where(chosen, bits.astype(np.uint8), np.frombuffer(data, np.uint8)).tobytes()

    return _damaged_packets(clips, generators, hit, options=SOURCE_QUALITY)


def nal_loss(clips: Tensor, *, generators: Generators, probability: float) -> Recovered:
    """Each coded slice (a NAL unit of at most 1,200 bytes) is lost with `probability`."""

    def thin(data: bytes, generator: np.random.Generator) -> bytes:
        units = split_units(data)
        lost = _lost(len(units), probability, generator)
        return b"".join(u for u, gone in zip(units, lost, strict=True) if not (gone and u.is_slice))

    options = {**SOURCE_QUALITY, "slice-max-size": _SLICE_BYTES}
    return _damaged_packets(clips, generators, thin, options=options)


def packet_loss(clips: Tensor, *, generators: Generators, probability: float) -> Recovered:
    """Each datagram of the stream is lost with `probability`.

    As FFmpeg sends it: an MPEG transport stream over UDP, seven packets of 188 bytes a datagram.
    """

    def change(frames: Frames, generator: np.random.Generator) -> tuple[Frames, int]:
        sent, parameters = _transport_stream(frames)
        datagrams = [sent[i : i + _DATAGRAM] for i in range(0, len(sent), _DATAGRAM)]
        lost = _lost(len(datagrams), probability, generator)
        received = b"".join(d for d, gone in zip(datagrams, lost, strict=True) if not gone)
        return _recovered(frames, _concealed(_received(received), parameters=parameters))

    return Recovered(*each_clip(clips, change, generators))


class Unit(bytes):
    """A NAL unit with its start code."""

    @property
    def kind(self) -> int:
        """The type of the unit (H.264, table 7-1)."""
        return self[self.index(_START) + 3] & 0x1F

    @property
    def is_slice(self) -> bool:
        """Whether it holds a part of a picture; other units hold parameters."""
        return self.kind in _SLICES


def split_units(data: bytes) -> list[Unit]:
    """The NAL units of a byte stream (H.264, annex B); joined they give `data` again."""
    starts = []
    place = data.find(_START)
    while place >= 0:
        # A start code may have a fourth byte in front, which belongs to it.
        starts.append(place - 1 if place > 0 and data[place - 1] == 0 else place)
        place = data.find(_START, place + 3)
    return [Unit(data[a:b]) for a, b in zip(starts, [*starts[1:], len(data)], strict=True)]


def _damaged_packets(
    clips: Tensor,
    generators: Generators,
    damage: Callable[[bytes, np.random.Generator], bytes],
    *,
    options: dict[str, str],
) -> Recovered:
    """Code each clip, damage the packets of its frames, and recover what can be recovered."""

    def change(frames: Frames, generator: np.random.Generator) -> tuple[Frames, int]:
        stream = codec.encode(frames, encoder="libx264", options=options)
        packets = ((packet.pts or 0, damage(bytes(packet), generator)) for packet in stream.packets)
        return _recovered(frames, _concealed(packets, parameters=stream.header or b""))

    return Recovered(*each_clip(clips, change, generators))


def _concealed(
    packets: Iterable[tuple[int, bytes]], *, parameters: bytes
) -> Iterator[av.VideoFrame]:
    """All that the decoder can make of damaged packets, given as (time, bytes)."""
    context = codec.open_codec("h264", "r")
    context.extradata = parameters
    context.flags |= Flags.output_corrupt
    for time, data in packets:
        if not data:  # an empty packet would end the stream
            continue
        packet = av.Packet(data)
        packet.pts = time
        with suppress(av.FFmpegError):  # nothing to show for this packet
            yield from context.decode(packet)
    with suppress(av.FFmpegError):
        yield from context.decode(None)


def _recovered(frames: Frames, decoded: Iterable[av.VideoFrame]) -> tuple[Frames, int]:
    """The decoded frames at their times, each gap filled by the frame before it."""
    length, height, width, _ = frames.shape
    pixels = codec.Pixels(height=height, width=width)
    found = {f.pts: pixels(f) for f in decoded if f.pts is not None and 0 <= f.pts < length}
    shown = found[min(found)] if found else np.zeros_like(frames[0])
    filled = np.empty_like(frames)
    for time in range(length):
        filled[time] = shown = found.get(time, shown)
    return filled, length - len(found)


def _transport_stream(frames: Frames) -> tuple[bytes, bytes]:
    """The coded clip as it is sent, and the parameters that its decoder needs."""
    file = io.BytesIO()
    coded: list[av.Packet] = []
    with av.open(file, "w", format="mpegts") as container:
        stream = container.add_stream("libx264")
        codec.configure(stream.codec_context, frames, options=SOURCE_QUALITY)
        for frame in [*codec.video_frames(frames, start=_LEAD), None]:
            for packet in stream.encode(frame):
                coded.append(packet)
                container.mux(packet)
    units = split_units(bytes(coded[0]))
    return file.getvalue(), b"".join(unit for unit in units if unit.kind in _PARAMETERS)


def _received(sent: bytes) -> Iterator[tuple[int, bytes]]:
    """The packets that can be found in what is left of a transport stream."""
    # A stream without one whole packet cannot even be opened.
    with suppress(av.FFmpegError), av.open(io.BytesIO(sent), "r", format="mpegts") as container:
        for packet in container.demux(video=0) if container.streams.video else ():
            if packet.pts is not None and packet.size:
                yield round(packet.pts / _TICKS) - _LEAD, bytes(packet)


def _lost(count: int, probability: float, generator: np.random.Generator) -> NDArray[np.bool_]:
    return _uniform(random_bits((count,), generator=generator, kind=np.uint64)) < probability


def _uniform(bits: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Numbers in [0, 1) from the upper bits."""
    return (bits >> np.uint64(11)) * 2.0**-53
