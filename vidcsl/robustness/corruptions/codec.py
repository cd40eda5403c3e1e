"""A round trip through a video codec, in memory: encode, decode, the same frames a little worse."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from typing import Any, Literal, NamedTuple, cast

import av
import numpy as np
import torch
from av.codec.context import Flags
from av.video.codeccontext import VideoCodecContext
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray
from torch import Tensor

from vidcsl.errors import UserError
from vidcsl.robustness.corruptions.layout import to_bytes

Frames = NDArray[np.uint8]
"""RGB `[T, H, W, 3]`."""

# What decodes the stream of an encoder whose name is not the codec's own.
DECODERS = {"libx264": "h264", "libx265": "hevc"}
# Who needs which encoder, and the decoder that belongs to it.
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
    """A coded clip: packets in the order of coding, and what the decoder must know beforehand."""

    packets: Sequence[av.Packet]
    header: bytes | None
    decoder: str

    @property
    def bits_per_second(self) -> float:
        """Of the packets, if every frame is shown for 1 / FRAMES_PER_SECOND seconds."""
        size = sum(packet.size for packet in self.packets)
        return 8 * size * FRAMES_PER_SECOND / max(1, len(self.packets))


def each_clip(
    clips: Tensor, change: Callable[..., tuple[Frames, int]], *arguments: Sequence[Any]
) -> tuple[Tensor, Tensor]:
    """Give the frames of each clip to `change`, on as many threads as there are cores.

    Codecs run outside Python's lock, and every clip is coded on one thread of its own, so that
    the result is the same on any number.

    Args:
        clips: float `[N, 3, T, H, W]` in [0, 1]; rounded to 8 bits.
        change: `(frames, *arguments of this clip) -> (frames, a count)`.
        arguments: N values each.

    Returns:
        The changed clips, and the counts, int64 `[N]`.
    """
    frames = to_bytes(clips).permute(0, 2, 3, 4, 1).cpu().contiguous().numpy()
    with ThreadPoolExecutor(min(len(clips), _cores())) as threads:
        changed, counts = zip(*threads.map(change, frames, *arguments), strict=True)
    coded = torch.empty(clips.shape)
    for clip, new in zip(coded, changed, strict=True):
        torch.mul(torch.from_numpy(new).permute(3, 0, 1, 2), 1 / 255, out=clip)
    return coded.to(clips.device), torch.tensor(counts)


def transcode_clips(
    clips: Tensor, *, encoder: str, options: Callable[[Frames], Mapping[str, str]]
) -> Tensor:
    """Send each clip through `encoder` and back.

    Args:
        clips: float `[N, 3, T, H, W]` in [0, 1]; rounded to 8 bits for the codec.
        encoder: an encoder's name in FFmpeg, for example "libx264".
        options: frames -> the encoder's options in FFmpeg's words.

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
    """Code the frames, the k-th at time k; odd or tiny sizes are padded for the codec."""
    context = open_codec(encoder, "w")
    configure(context, frames, options=options)
    context.flags |= Flags.global_header  # parameters beside the packets, not in the first one
    packets = [p for frame in [*video_frames(frames), None] for p in context.encode(frame)]
    return Stream(packets, context.extradata, DECODERS.get(encoder, encoder))


def configure(context: VideoCodecContext, frames: Frames, *, options: Mapping[str, str]) -> None:
    """Prepare an encoder for these frames, a constant number a second."""
    _, context.height, context.width, _ = padded(frames).shape
    context.pix_fmt = "yuv420p"
    context.time_base = Fraction(1, FRAMES_PER_SECOND)
    context.framerate = Fraction(FRAMES_PER_SECOND)
    context.options = dict(options)
    # One thread: how an encoder splits the work changes the bits it writes.
    context.thread_count = 1


def video_frames(frames: Frames, *, start: int = 0) -> Iterator[av.VideoFrame]:
    """The frames as an encoder takes them, the first at time `start`."""
    for time, pixels in enumerate(padded(frames), start):
        frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
        frame.pts = time
        yield frame


def padded(frames: Frames) -> Frames:
    """Frames of whole macroblocks; the border is repeated below and on the right."""
    down, right = (max(SMALLEST_SIDE, -(-n // BLOCK) * BLOCK) - n for n in frames.shape[1:3])
    return np.pad(frames, [(0, 0), (0, down), (0, right), (0, 0)], "edge")


def decode(stream: Stream) -> Iterator[av.VideoFrame]:
    """The frames of a sound stream, in the order in which they are shown."""
    context = open_codec(stream.decoder, "r")
    if stream.header:
        context.extradata = stream.header
    for packet in [*stream.packets, None]:
        yield from context.decode(packet)


class Pixels:
    """Turns decoded frames to RGB `[height, width, 3]`, without the padding."""

    def __init__(self, *, height: int, width: int) -> None:
        self._size = (slice(height), slice(width))
        self._scaler = VideoReformatter()  # kept, for it is costly to set up

    def __call__(self, frame: av.VideoFrame) -> NDArray[np.uint8]:
        """Pixels, uint8."""
        pixels: NDArray[Any] = self._scaler.reformat(frame, format="rgb24").to_ndarray()
        return pixels[self._size]


def open_codec(name: str, mode: Literal["r", "w"]) -> VideoCodecContext:
    """A codec on one thread.

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


def _cores() -> int:
    known = getattr(os, "sched_getaffinity", None)  # absent outside Linux
    return len(known(0)) if known else os.cpu_count() or 1
