"""A round trip through a video codec, in memory: encode, decode, the same frames a little worse."""

from collections.abc import Mapping
from fractions import Fraction
from typing import Literal, cast

import av
import numpy as np
import torch
from av.video.codeccontext import VideoCodecContext
from torch import Tensor

from vidcsl.errors import UserError
from vidcsl.robustness.corruptions.layout import to_bytes

# What decodes the stream of an encoder whose name is not the codec's own.
DECODERS = {"libx264": "h264", "libx265": "hevc"}
FRAMES_PER_SECOND = 25
# A macroblock. Below about 80 pixels x265 reads memory it never wrote, so that the same frames come
# back different each time, and below 64 it can crash (seen with x265 in PyAV 18.1).
BLOCK, SMALLEST_SIDE = 16, 96


def transcode_clips(clips: Tensor, *, encoder: str, options: Mapping[str, str]) -> Tensor:
    """Send each clip through `encoder` and back.

    Args:
        clips: float `[N, 3, T, H, W]` in [0, 1]; rounded to 8 bits for the codec.
        encoder: an encoder's name in FFmpeg, for example "libx264".
        options: the encoder's options in FFmpeg's words.

    Raises:
        UserError: the installed PyAV was built without this encoder.
    """
    frames = to_bytes(clips).permute(0, 2, 3, 4, 1).cpu().numpy()
    coded = np.stack([transcode(clip, encoder=encoder, options=options) for clip in frames])
    return torch.from_numpy(coded).to(clips.device).permute(0, 4, 1, 2, 3).float() / 255


def transcode(frames: np.ndarray, *, encoder: str, options: Mapping[str, str]) -> np.ndarray:
    """Encode and decode uint8 frames `[T, H, W, 3]`; odd or tiny sizes are padded for the codec."""
    length, height, width, _ = frames.shape
    padding = [(0, 0), (0, _padding(height)), (0, _padding(width)), (0, 0)]
    packets, extradata = _encode(np.pad(frames, padding, "edge"), encoder=encoder, options=options)
    decoded = _decode(packets, extradata=extradata, decoder=DECODERS.get(encoder, encoder))
    if len(decoded) != length:
        raise RuntimeError(f"{encoder} returned {len(decoded)} of {length} frames")
    return np.stack([frame.to_ndarray(format="rgb24") for frame in decoded])[:, :height, :width]


def _padding(size: int) -> int:
    return max(SMALLEST_SIDE, -(-size // BLOCK) * BLOCK) - size


def _encode(
    frames: np.ndarray, *, encoder: str, options: Mapping[str, str]
) -> tuple[list[av.Packet], bytes | None]:
    context = _open(encoder, "w")
    context.height, context.width = frames.shape[1:3]
    context.pix_fmt = "yuv420p"
    context.time_base = Fraction(1, FRAMES_PER_SECOND)
    context.framerate = Fraction(FRAMES_PER_SECOND)
    context.options = dict(options)
    packets = []
    for time, pixels in enumerate(frames):
        frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
        frame.pts = time
        packets += context.encode(frame)
    return packets + context.encode(None), context.extradata


def _decode(
    packets: list[av.Packet], *, extradata: bytes | None, decoder: str
) -> list[av.VideoFrame]:
    context = _open(decoder, "r")
    if extradata:
        context.extradata = extradata
    frames = [frame for packet in packets for frame in context.decode(packet)]
    return frames + context.decode(None)


def _open(name: str, mode: Literal["r", "w"]) -> VideoCodecContext:
    try:
        context = cast(VideoCodecContext, av.CodecContext.create(name, mode))
    except ValueError as error:  # PyAV's UnknownCodecError
        raise UserError(
            f"this build of PyAV {av.__version__} has no codec {name!r}; "
            "install PyAV from its wheels, or leave this corruption out"
        ) from error
    # One thread: how an encoder splits the work changes the bits it writes.
    context.thread_count = 1
    return context
