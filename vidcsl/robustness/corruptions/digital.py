"""Lossy compression of frames (JPEG) and of whole clips (MPEG-2, MPEG-4, H.264, H.265)."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torchvision.io import decode_jpeg, encode_jpeg

from vidcsl.robustness.corruptions.codec import Frames, encode, transcode_clips
from vidcsl.robustness.corruptions.draws import Generators
from vidcsl.robustness.corruptions.layout import to_bytes, to_clips, to_frames

# The AVX-512 code of x264's macroblock tree gives another stream every few runs (seen with x264 in
# PyAV 18.1); up to SSE4.2, AVX and AVX2 the bits are the same, always.
X264 = {"preset": "medium", "x264-params": "asm=SSE4.2"}
# x265 starts threads of its own and writes to stderr unless it is told not to.
X265 = {"preset": "medium", "x265-params": "log-level=none:pools=none:frame-threads=1"}
# FFmpeg's default, which most stored video went through.
SOURCE_QUALITY = {**X264, "crf": "23"}
_LOWEST_RATE = 1000  # bits per second; the encoders' own limit


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
    frames = to_frames(clips)
    for dim in (-2, -1):
        frames = _boxes(frames, dim=dim, count=max(1, int(frames.shape[dim] * share)))
    return to_clips(frames, count=len(clips))


def _boxes(frames: Tensor, *, dim: int, count: int) -> Tensor:
    """Replace each of `count` runs of rows or columns by its mean, as Pillow's BOX filter does."""
    size = frames.shape[dim]
    bounds = (torch.arange(count + 1, dtype=torch.float64) * size / count + 0.5).long()
    first, last = bounds[:-1], bounds[1:] - 1
    total = frames.index_select(dim, first.to(frames.device))
    for step in range(1, int((last - first).max()) + 1):
        inside = (first + step <= last).to(frames)
        inside = inside.view(-1, 1) if dim == -2 else inside
        picked = (first + step).clamp(max=size - 1).to(frames.device)
        total += frames.index_select(dim, picked) * inside
    lengths = (last - first + 1).to(frames)
    total /= lengths.view(-1, 1) if dim == -2 else lengths
    shown = ((torch.arange(size, dtype=torch.float64) + 0.5) * count / size).long()
    return total.index_select(dim, shown.to(frames.device))
