"""Blur by the optics (defocus), by camera movement (motion, zoom) and by long exposure."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vidcsl.robustness.corruptions.draws import Generators, uniform

SMALLEST_TAP = 1e-9  # a smaller weight changes nothing in 32 bits


def defocus_blur(
    clips: Tensor, *, generators: Generators, radius: int, alias_blur: float
) -> Tensor:
    """Blur by a disk of `radius` pixels whose edge is softened by a Gaussian of `alias_blur`.

    The disk is a stack of rows, and the sum along a row is a difference of two running sums, so
    that the cost grows with the radius and not with its square.
    """
    del generators
    height, width = clips.shape[-2:]
    taps = edge_taps(radius=radius, alias_blur=alias_blur)
    halves = [math.isqrt(radius**2 - y**2) for y in range(-radius, radius + 1)]
    margin = radius + len(taps) // 2
    blurred = torch.zeros_like(clips)
    # A few planes at a time on a CPU, so that the running sums stay in its cache.
    planes_at_once = 6 if clips.device.type == "cpu" else clips[:, :, :, 0, 0].numel()
    pairs = zip(
        clips.flatten(0, 2).split(planes_at_once),
        blurred.flatten(0, 2).split(planes_at_once),
        strict=True,
    )
    for planes, out in pairs:
        smooth = _weighted(_mirrored(planes, margin=margin), taps, dim=-2)
        sums = F.pad(_weighted(smooth, taps, dim=-1), (1, 0)).cumsum(-1)
        for half in set(halves):
            ends = sums[..., radius + half + 1 :][..., :width]
            line = ends - sums[..., radius - half :][..., :width]
            for row in (row for row, other in enumerate(halves) if other == half):
                out += line[..., row : row + height, :]
    return blurred.div_(sum(2 * half + 1 for half in halves))


def motion_blur(clips: Tensor, *, generators: Generators, radius: int, sigma: float) -> Tensor:
    """Smear every frame along a line with an angle from U(-45, 45) degrees, drawn per frame.

    The weights fall off on one side only, as in ImageMagick, which made the published data: moving
    things leave a trail. Borders repeat the edge.
    """
    angles = 90 * uniform(clips.shape[2], generators=generators) - 45
    height, width = clips.shape[-2:]
    reach = 2 * radius
    distances = torch.arange(reach + 1, dtype=torch.float32)
    weights = torch.exp(-(distances**2) / (2 * sigma**2))
    taps = (weights / weights.sum()).tolist()
    blurred = torch.zeros_like(clips)
    for clip, out, clip_angles in zip(clips, blurred, angles, strict=True):
        for t, offsets in enumerate(line_offsets(clip_angles, reach=reach).tolist()):
            padded = F.pad(clip[:, t], (0, reach, reach, reach), mode="replicate")
            frame = out[:, t]
            for (down, right), tap in zip(offsets, taps, strict=True):
                window = padded[:, reach + down :, right:][:, :height, :width]
                frame.add_(window, alpha=tap)
    return blurred


def zoom_blur(clips: Tensor, *, generators: Generators, stop: float, step: float) -> Tensor:
    """Mean of the frame and of its magnifications by 1, 1 + step, ... up to `stop`.

    The factors are those of `numpy.arange(1, stop, step)`, as in the published code.
    """
    del generators
    # All planes of a clip side by side for each pixel: resampling is then one operation on a long
    # vector and three times as fast.
    planes = clips.flatten(1, 2).contiguous(memory_format=torch.channels_last)
    factors = [1 + step * i for i in range(math.ceil((stop - 1) / step))]
    height, width = planes.shape[-2:]
    total = planes.clone()
    for factor in factors:
        crop = _centre(planes, math.ceil(height / factor), math.ceil(width / factor))
        # Rounding must not make the magnified centre smaller than the frame.
        size = [max(height, round(crop.shape[-2] * factor))]
        size += [max(width, round(crop.shape[-1] * factor))]
        magnified = F.interpolate(crop, size=size, mode="bilinear", align_corners=True)
        total += _centre(magnified, height, width)
    return total.div_(len(factors) + 1).contiguous().view(clips.shape)


def frame_averaging(clips: Tensor, *, generators: Generators, reach: int) -> Tensor:
    """Motion blur by long exposure: frame i becomes the mean of frames [i - reach, i + reach).

    The published code drops the `reach` frames at either end; here the first and the last frame
    are repeated beyond the ends, so that the clip keeps its length.
    """
    del generators
    length = clips.shape[2]
    times = torch.arange(length)
    sources = (times[:, None] + torch.arange(-reach, reach)).clamp(0, length - 1)
    weights = F.one_hot(sources, length).sum(1).to(clips) / (2 * reach)
    return torch.einsum("st,ncthw->ncshw", weights, clips)


def edge_taps(*, radius: int, alias_blur: float) -> list[float]:
    """The Gaussian that softens a disk: sum 1, over 1 pixel each way (2 where the radius > 8)."""
    reach = 1 if radius <= 8 else 2
    weights = [math.exp(-(i**2) / (2 * alias_blur**2)) for i in range(-reach, reach + 1)]
    return [weight / sum(weights) for weight in weights]


def line_offsets(angles: Tensor, *, reach: int) -> Tensor:
    """Whole pixels (down, right) of points 0 to `reach` on lines at `[*]` degrees from the right.

    Returns:
        int64 `[*, reach + 1, 2]`.
    """
    radians = torch.deg2rad(angles)[..., None]
    directions = torch.stack([radians.sin(), radians.cos()], -1)
    return (torch.arange(reach + 1)[:, None] * directions).round().long()


def reflect(index: Tensor, *, size: int) -> Tensor:
    """Fold indices into [0, size) by mirroring at the border pixels, however far outside."""
    period = max(2 * (size - 1), 1)
    return (size - 1) - ((index % period) - (size - 1)).abs()


def _mirrored(planes: Tensor, *, margin: int) -> Tensor:
    """Planes `[P, H, W]` with `margin` more pixels on each side."""
    if margin < min(planes.shape[-2:]):
        return F.pad(planes, (margin,) * 4, mode="reflect")
    for dim in (-2, -1):  # torch mirrors only once
        size = planes.shape[dim]
        sources = reflect(torch.arange(-margin, size + margin), size=size)
        planes = planes.index_select(dim, sources.to(planes.device))
    return planes


def _weighted(padded: Tensor, taps: Sequence[float], *, dim: int) -> Tensor:
    """Correlation along one dimension with symmetric taps, without padding."""
    reach = len(taps) // 2
    size = padded.shape[dim] - 2 * reach
    total = padded.narrow(dim, reach, size) * taps[reach]
    for step in range(1, reach + 1):
        if taps[reach + step] > SMALLEST_TAP:
            total.add_(padded.narrow(dim, reach - step, size), alpha=taps[reach - step])
            total.add_(padded.narrow(dim, reach + step, size), alpha=taps[reach + step])
    return total


def _centre(frames: Tensor, height: int, width: int) -> Tensor:
    top, left = (frames.shape[-2] - height) // 2, (frames.shape[-1] - width) // 2
    return frames[..., top : top + height, left : left + width]
