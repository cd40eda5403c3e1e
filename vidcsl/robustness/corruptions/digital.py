"""Lossy compression of frames (JPEG) and of whole clips (MPEG-2, MPEG-4, H.264, H.265)."""

import torch
from torch import Tensor
from torchvision.io import decode_jpeg, encode_jpeg

from vidcsl.robustness.corruptions.codec import transcode_clips
from vidcsl.robustness.corruptions.draws import Generators
from vidcsl.robustness.corruptions.layout import to_bytes, to_clips, to_frames


def jpeg(clips: Tensor, *, generators: Generators, quality: int) -> Tensor:
    """JPEG, frame by frame."""
    del generators
    frames = to_frames(to_bytes(clips)).cpu()
    coded = torch.stack([decode_jpeg(encode_jpeg(frame, quality=quality)) for frame in frames])
    return to_clips(coded.to(clips.device), count=len(clips)).float() / 255


def fixed_quantiser(
    clips: Tensor, *, generators: Generators, encoder: str, quantiser: int
) -> Tensor:
    """MPEG-2 or MPEG-4 part 2 with one quantiser (1 finest .. 31 coarsest) for every frame."""
    del generators
    # Lagrange multipliers count in 118ths of a quantiser step (FFmpeg's FF_QP2LAMBDA).
    step, multiplier = str(quantiser), str(118 * quantiser)
    options = {"qmin": step, "qmax": step, "lmin": multiplier, "lmax": multiplier}
    return transcode_clips(clips, encoder=encoder, options=options)


def h264(clips: Tensor, *, generators: Generators, crf: int) -> Tensor:
    """H.264 by x264 at a constant rate factor (0 lossless .. 51 worst)."""
    del generators
    # The AVX-512 code of x264's macroblock tree gives another stream every few runs (seen with x264
    # in PyAV 18.1); up to SSE4.2, AVX and AVX2 the bits are the same, always.
    options = {"crf": str(crf), "preset": "medium", "x264-params": "asm=SSE4.2"}
    return transcode_clips(clips, encoder="libx264", options=options)


def h265(clips: Tensor, *, generators: Generators, crf: int) -> Tensor:
    """H.265 by x265 at a constant rate factor (0 best .. 51 worst)."""
    del generators
    # x265 starts threads of its own and writes to stderr unless it is told not to.
    quiet = "log-level=none:pools=none:frame-threads=1"
    options = {"crf": str(crf), "preset": "medium", "x265-params": quiet}
    return transcode_clips(clips, encoder="libx265", options=options)
