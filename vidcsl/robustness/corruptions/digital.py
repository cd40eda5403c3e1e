"""Lossy compression of frames (JPEG) and of whole clips (MPEG-2, MPEG-4, H.264, H.265)."""

import io
from collections.abc import Callable, Mapping

import torch
from PIL import Image
from torch import Tensor
from torchvision.io import decode_jpeg

from vidcsl.robustness.corruptions.codec import Frames, encode, transcode_clips
from vidcsl.robustness.corruptions.draws import Generators

# The AVX-512 code of x264's macroblock tree gives another stream every few runs (seen with x264 in
# PyAV 18.1); up to SSE4.2, AVX and AVX2 the bits are the same, always.
X264 = {"preset": "medium", "x264-params": "asm=SSE4.2"}
# x265 starts threads of its own and writes to stderr unless it is told not to.
X265 = {"preset": "medium", "x265-params": "log-level=none:pools=none:frame-threads=1"}
# FFmpeg's default, which most stored video went through.
SOURCE_QUALITY = {**X264, "crf": "23"}
_WHOLE = torch.tensor(2.0**23)
_LOWEST_RATE = 1000  # bits per second; the encoders' own limit


def jpeg(clips: Tensor, *, generators: Generators, quality: int) -> Tensor:
    """JPEG, frame by frame."""
    del generators
    coded = torch.empty(clips.shape)
    for clip, out in zip(clips.cpu(), coded, strict=True):
        for frame, decoded in zip(clip.unbind(1), out.unbind(1), strict=True):
            file = io.BytesIO()
            _image(frame).save(file, "JPEG", quality=quality)
            data = torch.frombuffer(file.getbuffer(), dtype=torch.uint8)
            decoded.copy_(decode_jpeg(data))
    return coded.mul_(1 / 255).to(clips.device)


def _image(frame: Tensor) -> Image.Image:
    """A frame `[3, H, W]` in [0, 1] as Pillow's: four bytes a pixel, the last without meaning.

    At 2^23 a float's last bit is a whole level, so adding that rounds a channel into the lowest
    byte; one sum of shifted words then packs a pixel. Several times as fast as converting.
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
    bounds = [_box_bounds(size, count=max(1, int(size * share))) for size in planes.shape[1:]]
    # Whole rows are cheap to pick, single columns are not: hence the transposing.
    small = _means_of_rows(planes, bounds[0]).transpose(1, 2).contiguous()
    wide = _repeat_rows(_means_of_rows(small, bounds[1]), size=planes.shape[2])
    tall = _repeat_rows(wide.transpose(1, 2).contiguous(), size=planes.shape[1])
    return tall.view(clips.shape)


def _box_bounds(size: int, *, count: int) -> list[int]:
    """Where the `count` boxes along a side begin, and where the last ends, as in Pillow."""
    return [int(i * size / count + 0.5) for i in range(count + 1)]


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
