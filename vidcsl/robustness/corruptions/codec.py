"""Compression by JPEG and video codecs, pixelation, and damage to the coded stream.

Clips are coded and decoded in memory. Everything that could make a codec's output vary from run to
run (threads, some vector instructions, tiny frames) is switched off or avoided here.
"""

import io
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from fractions import Fraction
from typing import Any, Literal, NamedTuple, cast

import av
import numpy as np
import torch
from av.codec.context import Flags
from av.video.codeccontext import VideoCodecContext
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.io import decode_jpeg

from vidcsl.errors import UserError
from vidcsl.robustness.corruptions.draws import Generators, random_bits, to_bytes

# ----------------------------------------------------------------------
# A round trip through a video codec.

Frames = NDArray[np.uint8]
"""RGB `[T, H, W, 3]`."""

# Decoders of encoders whose name is not the codec's own.
DECODERS = {"libx264": "h264", "libx265": "hevc"}
# Encoders and the corruptions that need them (`vidcsl doctor` checks them).
USED_BY = {
    "mpeg2video": ("P/mpeg2",),
    "mpeg4": ("P/mpeg4",),
    "libx264": (
        *("C/bit_error", "C/packet_loss", "C/h264", "C/h264_bit_rate", "C/h265_bit_rate"),
        "V/nal_loss",
    ),
    "libx265": ("C/h265", "C/h265_bit_rate"),
}
FRAMES_PER_SECOND = 25
# A macroblock. Below about 80 pixels x265 reads memory it never wrote, so that the same frames come
# back different each time, and below 64 it can crash (seen with x265 in PyAV 18.1).
BLOCK, SMALLEST_SIDE = 16, 96


class Stream(NamedTuple):
    """A coded clip: packets in coding order, and the parameters that the decoder needs first."""

    packets: Sequence[av.Packet]
    header: bytes | None
    decoder: str

    @property
    def bits_per_second(self) -> float:
        """The bit rate of the packets at FRAMES_PER_SECOND."""
        size = sum(packet.size for packet in self.packets)
        return 8 * size * FRAMES_PER_SECOND / max(1, len(self.packets))


def each_clip(
    clips: Tensor, change: Callable[..., tuple[Frames, Any]], *arguments: Sequence[Any]
) -> tuple[Tensor, Tensor]:
    """Apply `change` to the frames of each clip, on as many threads as there are cores.

    Codecs run outside Python's lock. Every clip is coded on one thread, so that the result does
    not depend on their number.

    Args:
        clips: float `[N, 3, T, H, W]` in [0, 1]; rounded to 8 bits.
        change: `(frames, *arguments of this clip) -> (frames, a count or several)`.
        arguments: N values each.

    Returns:
        The changed clips, and the counts, int64 `[N]` or `[N, several]`.
    """
    frames = to_bytes(clips).permute(0, 2, 3, 4, 1).cpu().contiguous().numpy()
    allowed = getattr(os, "sched_getaffinity", None)  # absent outside Linux
    cores = len(allowed(0)) if allowed else os.cpu_count() or 1
    with ThreadPoolExecutor(min(len(clips), cores)) as threads:
        changed, counts = zip(*threads.map(change, frames, *arguments), strict=True)
    coded = torch.empty(clips.shape, dtype=torch.float32)
    for clip, new in zip(coded, changed, strict=True):
        clip.copy_(torch.from_numpy(new).permute(3, 0, 1, 2)).mul_(1 / 255)
    return coded.to(clips.device), torch.tensor(counts)


def transcode_clips(
    clips: Tensor, *, encoder: str, options: Callable[[Frames], Mapping[str, str]]
) -> Tensor:
    """Send each clip through `encoder` and back.

    Args:
        clips: float `[N, 3, T, H, W]` in [0, 1]; rounded to 8 bits for the codec.
        encoder: an encoder's name in FFmpeg, for example "libx264".
        options: frames -> the encoder's options, as FFmpeg names them.

    Raises:
        UserError: the installed PyAV was built without this encoder.
    """
    return each_clip(
        clips, lambda frames: (transcode(frames, encoder=encoder, options=options(frames)), 0)
    )[0]


def transcode(frames: Frames, *, encoder: str, options: Mapping[str, str]) -> Frames:
    """Encode and decode uint8 frames `[T, H, W, 3]`."""
    length, height, width, _ = frames.shape
    stream = encode(frames, encoder=encoder, options=options)
    decoded = list(decode(stream))
    if len(decoded) != length:
        raise RuntimeError(f"{encoder} returned {len(decoded)} of {length} frames")
    pixels = Pixels(height=height, width=width)
    return np.stack([pixels(frame) for frame in decoded])


def encode(frames: Frames, *, encoder: str, options: Mapping[str, str]) -> Stream:
    """Encode the frames, the k-th at time k; odd or tiny sizes are padded."""
    context = open_codec(encoder, "w")
    configure(context, frames, options=options)
    context.flags |= Flags.global_header  # parameters beside the packets, not in the first one
    packets = [p for frame in [*video_frames(frames), None] for p in context.encode(frame)]
    return Stream(packets, context.extradata, DECODERS.get(encoder, encoder))


def configure(context: VideoCodecContext, frames: Frames, *, options: Mapping[str, str]) -> None:
    """Prepare an encoder for these frames at FRAMES_PER_SECOND."""
    _, context.height, context.width, _ = padded(frames).shape
    context.pix_fmt = "yuv420p"
    context.time_base = Fraction(1, FRAMES_PER_SECOND)
    context.framerate = Fraction(FRAMES_PER_SECOND)
    context.options = dict(options)
    # One thread: how an encoder splits the work changes the bits it writes.
    context.thread_count = 1


def video_frames(frames: Frames, *, start: int = 0) -> Iterator[av.VideoFrame]:
    """The frames as PyAV's frames, the first at time `start`."""
    for time, pixels in enumerate(padded(frames), start):
        frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
        frame.pts = time
        yield frame


def padded(frames: Frames) -> Frames:
    """Frames padded to whole macroblocks by repeating the border below and on the right."""
    down, right = (max(SMALLEST_SIDE, -(-n // BLOCK) * BLOCK) - n for n in frames.shape[1:3])
    return np.pad(frames, [(0, 0), (0, down), (0, right), (0, 0)], "edge")


def decode(stream: Stream) -> Iterator[av.VideoFrame]:
    """The frames of an undamaged stream, in display order."""
    context = open_codec(stream.decoder, "r")
    if stream.header:
        context.extradata = stream.header
    for packet in [*stream.packets, None]:
        yield from context.decode(packet)


class Pixels:
    """Converts decoded frames to RGB `[height, width, 3]`, without the padding."""

    def __init__(self, *, height: int, width: int) -> None:
        self._size = (slice(height), slice(width))
        self._scaler = VideoReformatter()  # costly to set up, so it serves all frames

    def __call__(self, frame: av.VideoFrame) -> NDArray[np.uint8]:
        """The frame's pixels, uint8."""
        pixels: NDArray[Any] = self._scaler.reformat(frame, format="rgb24").to_ndarray()
        return pixels[self._size]


def open_codec(name: str, mode: Literal["r", "w"]) -> VideoCodecContext:
    """Open a codec on one thread.

    Raises:
        UserError: the installed PyAV was built without it.
    """
    try:
        context = cast(VideoCodecContext, av.CodecContext.create(name, mode))
    except ValueError as error:  # PyAV's UnknownCodecError
        kind = "encoder" if mode == "w" else "decoder"
        raise UserError(
            f"this build of PyAV {av.__version__} has no {kind} {name!r} (`vidcsl doctor` lists "
            "them); install PyAV from its wheels, or leave this corruption out"
        ) from error
    context.thread_count = 1
    return context


# ----------------------------------------------------------------------
# Lossy compression of frames (JPEG) and of whole clips (MPEG-2, MPEG-4, H.264, H.265).

# The AVX-512 code of x264's macroblock tree gives another stream every few runs (seen with x264 in
# PyAV 18.1); up to SSE4.2, AVX and AVX2 the bits are the same, always.
X264 = {"preset": "medium", "x264-params": "asm=SSE4.2"}
# x265 starts threads of its own and writes to stderr unless it is told not to.
X265 = {"preset": "medium", "x265-params": "log-level=none:pools=none:frame-threads=1"}
# FFmpeg's default, which most stored video went through.
SOURCE_QUALITY = {**X264, "crf": "23"}
_WHOLE = torch.tensor(2.0**23, dtype=torch.float32)
_LOWEST_RATE = 1000  # bits per second; the encoders' own limit


def jpeg(clips: Tensor, *, generators: Generators, quality: int) -> Tensor:
    """JPEG, frame by frame."""
    del generators
    coded = torch.empty(clips.shape, dtype=torch.float32)
    for clip, out in zip(clips.cpu(), coded, strict=True):
        for frame, decoded in zip(clip.unbind(1), out.unbind(1), strict=True):
            file = io.BytesIO()
            _image(frame).save(file, "JPEG", quality=quality)
            data = torch.frombuffer(file.getbuffer(), dtype=torch.uint8)
            decoded.copy_(decode_jpeg(data))
    return coded.mul_(1 / 255).to(clips.device)


def _image(frame: Tensor) -> Image.Image:
    """A frame `[3, H, W]` in [0, 1] as a Pillow image of four bytes per pixel, the last unused.

    At 2^23 a float's last bit is a whole level, so adding 2^23 rounds a channel into the lowest
    byte, and one sum of shifted words packs a pixel. This is several times as fast as conversion.
    """
    red, green, blue = torch.add(_WHOLE, frame, alpha=255).view(torch.int32)
    pixels = red.add_(green, alpha=1 << 8).add_(blue, alpha=1 << 16)
    height, width = frame.shape[1:]
    return Image.frombuffer("RGBX", (width, height), pixels.numpy(), "raw", "RGBX", 0, 1)


def fixed_quantiser(
    clips: Tensor, *, generators: Generators, encoder: str, quantiser: int
) -> Tensor:
    """MPEG-2 or MPEG-4 part 2 with one quantiser (1 finest .. 31 coarsest) for every frame."""
    del generators
    # Lagrange multipliers count in 118ths of a quantiser step (FFmpeg's FF_QP2LAMBDA).
    step, multiplier = str(quantiser), str(118 * quantiser)
    options = {"qmin": step, "qmax": step, "lmin": multiplier, "lmax": multiplier}
    return transcode_clips(clips, encoder=encoder, options=lambda _: options)


def h264(clips: Tensor, *, generators: Generators, crf: int) -> Tensor:
    """H.264 by x264 at a constant rate factor (0 lossless .. 51 worst)."""
    del generators
    return transcode_clips(clips, encoder="libx264", options=lambda _: {**X264, "crf": str(crf)})


def h265(clips: Tensor, *, generators: Generators, crf: int) -> Tensor:
    """H.265 by x265 at a constant rate factor (0 best .. 51 worst)."""
    del generators
    return transcode_clips(clips, encoder="libx265", options=lambda _: {**X265, "crf": str(crf)})


def h264_bit_rate(clips: Tensor, *, generators: Generators, divisor: int) -> Tensor:
    """H.264 at the source's bit rate over `divisor`, which is also the largest rate allowed.

    A clip does not know the file it comes from: the rate at which it is itself coded by H.264
    with FFmpeg's default quality stands for the source's.
    """
    del generators
    return transcode_clips(clips, encoder="libx264", options=_share_of_source(divisor, X264))


def h265_bit_rate(clips: Tensor, *, generators: Generators, divisor: int) -> Tensor:
    """H.265 at the source's bit rate over `divisor`, see `h264_bit_rate`."""
    del generators
    return transcode_clips(clips, encoder="libx265", options=_share_of_source(divisor, X265))


def _share_of_source(
    divisor: int, encoder: Mapping[str, str]
) -> Callable[[Frames], Mapping[str, str]]:
    def options(frames: Frames) -> Mapping[str, str]:
        source = encode(frames, encoder="libx264", options=SOURCE_QUALITY).bits_per_second
        rate = str(max(_LOWEST_RATE, round(source / divisor)))
        return {**encoder, "b": rate, "maxrate": rate, "bufsize": rate}

    return options


def pixelate(clips: Tensor, *, generators: Generators, share: float) -> Tensor:
    """Shrink each side to `share` of its length, the mean of each box, and enlarge it again."""
    del generators
    planes = clips.flatten(0, 2)
    # Where the boxes along each side begin, and where the last one ends, as in Pillow.
    counts = [max(1, int(size * share)) for size in planes.shape[1:]]
    bounds = [
        [int(i * size / count + 0.5) for i in range(count + 1)]
        for size, count in zip(planes.shape[1:], counts, strict=True)
    ]
    # Whole rows are cheap to select, single columns are not: hence the transposing.
    small = _means_of_rows(planes, bounds[0]).transpose(1, 2).contiguous()
    wide = _repeat_rows(_means_of_rows(small, bounds[1]), size=planes.shape[2])
    tall = _repeat_rows(wide.transpose(1, 2).contiguous(), size=planes.shape[1])
    return tall.view(clips.shape)


def _means_of_rows(planes: Tensor, bounds: list[int]) -> Tensor:
    """Means of rows `bounds[i]` to `bounds[i + 1] - 1`, `[P, H, W]` to `[P, count, W]`."""
    starts = torch.tensor(bounds[:-1])
    lengths = torch.tensor(bounds).diff()
    total = planes.index_select(1, starts.to(planes.device))
    for step in range(1, int(lengths.max())):
        longer = (lengths > step).nonzero()[:, 0]
        more = planes.index_select(1, (starts[longer] + step).to(planes.device))
        total.index_add_(1, longer.to(planes.device), more)
    return total.div_(lengths.to(planes)[:, None])


def _repeat_rows(planes: Tensor, *, size: int) -> Tensor:
    """The nearest row for each of `size` rows."""
    count = planes.shape[1]
    nearest = torch.tensor([int((i + 0.5) * count / size) for i in range(size)])
    return planes.index_select(1, nearest.to(planes.device))


# ----------------------------------------------------------------------
# Damage to the coded stream of a clip, which is then decoded with the decoder's concealment.
#
# The clip is coded by H.264 with FFmpeg's default quality, damaged in memory, and decoded. A frame
# that cannot be decoded is replaced by the last good one (before the first good frame, by that one)
# and counted. If nothing can be decoded, the clip is black. The decoder knows the stream's
# parameters from the start, because the published code damages none of them. Damage before the
# clip, in a longer video, has no effect.
#
# The published code damages whole files of large frames. A clip of small frames is a few hundred
# bytes, which such rates would hardly ever hit: rates are those of as many pixels as a published
# frame has, so that a clip is hit as often as the same number of published frames.

# Seven packets of a transport stream fill what one datagram of a common network can carry.
_PACKET = 188
_DATAGRAM = 7 * _PACKET
_TICKS = 90_000 // FRAMES_PER_SECOND  # of a transport stream's clock, from frame to frame
_LEAD = 16  # frames by which it starts late: more than an encoder reorders, so no time is < 0
_SLICE_BYTES = "1200"
_PUBLISHED_PIXELS = 340 * 256  # Kinetics at its published short side
_SLICES, _PARAMETERS = (1, 5), (7, 8)  # types of H.264's NAL units
_START = b"\x00\x00\x01"


class Recovered(NamedTuple):
    """Clips, and what became of each.

    Attributes:
        clips: as the decoder shows them.
        repeated: frames that could not be recovered, int64 `[N]`.
        damaged: whether any of the stream was hit at all, bool `[N]`.
    """

    clips: Tensor
    repeated: Tensor
    damaged: Tensor


def _smaller(frames: Frames) -> float:
    """How many times a published frame holds the pixels of these, from 1."""
    return max(1.0, _PUBLISHED_PIXELS / (frames.shape[1] * frames.shape[2]))


def bit_error(clips: Tensor, *, generators: Generators, bytes_per_error: int) -> Recovered:
    """Overwrite on average one of `bytes_per_error` bytes, at published size, by a random one.

    The published code runs FFmpeg's filter `noise`, which overwrites bytes at the same rate, at
    places that depend on the bytes before; here the places are random.
    """

    def hit(data: bytes, generator: np.random.Generator, smaller: float) -> bytes:
        bits = random_bits((len(data),), generator=generator, kind=np.uint64)
        chosen = _uniform(bits) < smaller / bytes_per_error
        return np.where(chosen, bits.astype(np.uint8), np.frombuffer(data, np.uint8)).tobytes()

    return _damaged_packets(clips, generators, hit, options=SOURCE_QUALITY)


def nal_loss(clips: Tensor, *, generators: Generators, probability: float) -> Recovered:
    """Lose each coded slice (a NAL unit of at most 1,200 bytes) with `probability`."""

    def thin(data: bytes, generator: np.random.Generator, smaller: float) -> bytes:  # noqa: ARG001
        units = split_units(data)
        lost = _lost(len(units), probability, generator)
        return b"".join(u for u, gone in zip(units, lost, strict=True) if not (gone and u.is_slice))

    options = {**SOURCE_QUALITY, "slice-max-size": _SLICE_BYTES}
    return _damaged_packets(clips, generators, thin, options=options)


def packet_loss(clips: Tensor, *, generators: Generators, probability: float) -> Recovered:
    """Lose each datagram of the stream with `probability`.

    The stream is sent as FFmpeg does: an MPEG transport stream over UDP, with seven packets of
    188 bytes per datagram. For small frames a datagram holds fewer packets, down to one, and is
    lost more often from there on, so that it stands for as much of the picture as in large ones.
    """

    def change(frames: Frames, generator: np.random.Generator) -> tuple[Frames, tuple[int, int]]:
        sent, parameters = _transport_stream(frames)
        smaller = _smaller(frames)
        packets = max(1, round(_DATAGRAM / _PACKET / smaller))
        size = packets * _PACKET
        datagrams = [sent[i : i + size] for i in range(0, len(sent), size)]
        # Of as many full datagrams as this one stands for, one or more is lost.
        alike = max(1.0, smaller * packets * _PACKET / _DATAGRAM)
        lost = _lost(len(datagrams), 1 - (1 - probability) ** alike, generator)
        received = b"".join(d for d, gone in zip(datagrams, lost, strict=True) if not gone)
        decoded = _concealed(_received(received), parameters=parameters)
        shown, repeated = _recovered(frames, decoded)
        return shown, (repeated, bool(lost.any()))

    coded, counts = each_clip(clips, change, generators)
    return Recovered(coded, counts[:, 0], counts[:, 1].bool())


class Unit(bytes):
    """A NAL unit with its start code."""

    @property
    def kind(self) -> int:
        """The type of the unit (H.264, table 7-1)."""
        return self[self.index(_START) + 3] & 0x1F

    @property
    def is_slice(self) -> bool:
        """Whether it holds part of a picture; other units hold parameters."""
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
    damage: Callable[[bytes, np.random.Generator, float], bytes],
    *,
    options: dict[str, str],
) -> Recovered:
    """Encode each clip, damage its packets, and recover the frames that can be recovered."""

    def change(frames: Frames, generator: np.random.Generator) -> tuple[Frames, tuple[int, int]]:
        stream, smaller = encode(frames, encoder="libx264", options=options), _smaller(frames)
        sent = [(packet.pts or 0, bytes(packet)) for packet in stream.packets]
        received = [(time, damage(data, generator, smaller)) for time, data in sent]
        shown, repeated = _recovered(frames, _concealed(received, parameters=stream.header or b""))
        return shown, (repeated, received != sent)

    coded, counts = each_clip(clips, change, generators)
    return Recovered(coded, counts[:, 0], counts[:, 1].bool())


def _concealed(
    packets: Iterable[tuple[int, bytes]], *, parameters: bytes
) -> Iterator[av.VideoFrame]:
    """All frames that the decoder recovers from damaged packets, given as (time, bytes)."""
    context = open_codec("h264", "r")
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
    """The decoded frames at their times, with each gap filled by the frame before it."""
    length, height, width, _ = frames.shape
    pixels = Pixels(height=height, width=width)
    found = {f.pts: pixels(f) for f in decoded if f.pts is not None and 0 <= f.pts < length}
    shown = found[min(found)] if found else np.zeros_like(frames[0])
    filled = np.empty_like(frames)
    for time in range(length):
        filled[time] = shown = found.get(time, shown)
    return filled, length - len(found)


def _transport_stream(frames: Frames) -> tuple[bytes, bytes]:
    """The clip as a transport stream, and the parameters that its decoder needs."""
    file = io.BytesIO()
    coded: list[av.Packet] = []
    with av.open(file, "w", format="mpegts") as container:
        stream = container.add_stream("libx264")
        configure(stream.codec_context, frames, options=SOURCE_QUALITY)
        for frame in [*video_frames(frames, start=_LEAD), None]:
            for packet in stream.encode(frame):
                coded.append(packet)
                container.mux(packet)
    units = split_units(bytes(coded[0]))
    return file.getvalue(), b"".join(unit for unit in units if unit.kind in _PARAMETERS)


def _received(sent: bytes) -> Iterator[tuple[int, bytes]]:
    """The packets that remain in a damaged transport stream, as (time, bytes)."""
    # A stream without a single whole packet cannot even be opened.
    with suppress(av.FFmpegError), av.open(io.BytesIO(sent), "r", format="mpegts") as container:
        for packet in container.demux(video=0) if container.streams.video else ():
            if packet.pts is not None and packet.size:
                yield round(packet.pts / _TICKS) - _LEAD, bytes(packet)


def _lost(count: int, probability: float, generator: np.random.Generator) -> NDArray[np.bool_]:
    return _uniform(random_bits((count,), generator=generator, kind=np.uint64)) < probability


def _uniform(bits: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Numbers in [0, 1) from the upper bits."""
    return (bits >> np.uint64(11)) * 2.0**-53
