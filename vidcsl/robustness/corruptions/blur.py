"""Blur of the optics (defocus), of the camera's movement (motion, zoom) and over time."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from vidcsl.robustness.corruptions.draws import Generators, uniform
from vidcsl.robustness.corruptions.layout import to_clips, to_frames


def defocus_blur(
    clips: Tensor, *, generators: Generators, radius: int, alias_blur: float
) -> Tensor:
    """Blur by a disk of `radius` pixels whose edge is softened by a Gaussian of `alias_blur`."""
    del generators
    kernel = disk_kernel(radius=radius, alias_blur=alias_blur).to(clips.device)
    height, width = clips.shape[-2:]
    margin = kernel.shape[-1] // 2
    rows = reflect(torch.arange(-margin, height + margin), size=height)
    columns = reflect(torch.arange(-margin, width + margin), size=width)
    return _correlate(clips[..., rows, :][..., columns], kernel)


def motion_blur(clips: Tensor, *, generators: Generators, radius: int, sigma: float) -> Tensor:
    """Smear every frame along a line with an angle from U(-45, 45) degrees, drawn per frame.

    The weights fall off on one side only, as in ImageMagick, which the published data went
    through: the picture leaves a trail. Borders repeat the edge.
    """
    angles = 90 * uniform(clips.shape[2], generators=generators) - 45
    kernels = line_kernels(angles, radius=radius, sigma=sigma).to(clips.device)
    height, width = clips.shape[-2:]
    margin = kernels.shape[-1] // 2
    rows = torch.arange(-margin, height + margin).clamp(0, height - 1)
    columns = torch.arange(-margin, width + margin).clamp(0, width - 1)
    return _correlate(clips[..., rows, :][..., columns], kernels[:, None])


def zoom_blur(clips: Tensor, *, generators: Generators, stop: float, step: float) -> Tensor:
    """Mean of the frame and of itself magnified by 1, 1 + step, ... (below `stop`)."""
    del generators
    frames = to_frames(clips)
    factors = [1 + step * i for i in range(math.ceil((stop - 1) / step - 1e-6))]
    total = frames.clone()
    for factor in factors:
        total += _magnify(frames, factor)
    return to_clips(total / (len(factors) + 1), count=len(clips))


def frame_averaging(clips: Tensor, *, generators: Generators, reach: int) -> Tensor:
    """Motion blur by a long exposure: frame i becomes the mean of frames [i - reach, i + reach).

    The published code drops the `reach` frames at either end; here the first and the last frame
    stand in for what is missing, so that the clip keeps its length.
    """
    del generators
    length = clips.shape[2]
    times = torch.arange(length)
    sources = (times[:, None] + torch.arange(-reach, reach)).clamp(0, length - 1)
    weights = F.one_hot(sources, length).sum(1).to(clips) / (2 * reach)
    return torch.einsum("st,ncthw->ncshw", weights, clips)


def disk_kernel(*, radius: int, alias_blur: float) -> Tensor:
    """A disk `[2r + 2b + 1, 2r + 2b + 1]` with sum 1, smoothed over b = 1 pixel (2 if r > 8)."""
    reach = 1 if radius <= 8 else 2
    axis = torch.arange(-radius - reach, radius + reach + 1, dtype=torch.float64)
    disk = (axis[:, None] ** 2 + axis**2 <= radius**2).double()
    taps = torch.exp(-(torch.arange(-reach, reach + 1).double() ** 2) / (2 * alias_blur**2))
    smoother = torch.outer(taps, taps)
    smooth = F.conv2d(disk[None, None], smoother[None, None], padding=reach)[0, 0]
    return (smooth / smooth.sum()).float()


def line_kernels(angles: Tensor, *, radius: int, sigma: float) -> Tensor:
    """A half Gaussian along a line from the centre, `[*, 4r + 1, 4r + 1]` for angles `[*]` (°)."""
    reach = 2 * radius
    distance = torch.arange(reach + 1)
    weights = torch.exp(-(distance**2) / (2 * sigma**2))
    weights = weights / weights.sum()
    radians = torch.deg2rad(angles)[..., None]
    rows = reach + (distance * radians.sin()).round().long()
    columns = reach + (distance * radians.cos()).round().long()
    side = 2 * reach + 1
    kernels = torch.zeros(*angles.shape, side * side)
    kernels.scatter_add_(-1, rows * side + columns, weights.expand(rows.shape))
    return kernels.unflatten(-1, (side, side))


def reflect(index: Tensor, *, size: int) -> Tensor:
    """Fold indices into [0, size) by mirroring at the border pixels, however far outside."""
    period = max(2 * (size - 1), 1)
    return (size - 1) - ((index % period) - (size - 1)).abs()


def _correlate(padded: Tensor, kernels: Tensor) -> Tensor:
    """Correlate planes `[..., H + k - 1, W + k - 1]` with kernels `[..., k, k]` to `[..., H, W]`.

    Through the Fourier transform, whose cost does not grow with the kernel: direct convolution of
    16 frames with a 21 x 21 disk takes ten times as long.
    """
    k = kernels.shape[-1]
    height, width = padded.shape[-2] - k + 1, padded.shape[-1] - k + 1
    size = (_fast_length(padded.shape[-2]), _fast_length(padded.shape[-1]))
    spectrum = torch.fft.rfft2(padded, s=size) * torch.fft.rfft2(kernels, s=size).conj()
    return torch.fft.irfft2(spectrum, s=size)[..., :height, :width]


def _fast_length(size: int) -> int:
    """The next length with no prime factor above 5, where the transform is fast."""
    rest = size
    for prime in (2, 3, 5):
        while rest % prime == 0:
            rest //= prime
    return size if rest == 1 else _fast_length(size + 1)


def _magnify(frames: Tensor, factor: float) -> Tensor:
    """The centre of the frames, enlarged by `factor` to at least their size, then trimmed."""
    height, width = frames.shape[-2:]
    crop = _centre(frames, math.ceil(height / factor), math.ceil(width / factor))
    size = [max(height, round(crop.shape[-2] * factor)), max(width, round(crop.shape[-1] * factor))]
    enlarged = F.interpolate(crop, size=size, mode="bilinear", align_corners=True)
    return _centre(enlarged, height, width)


def _centre(frames: Tensor, height: int, width: int) -> Tensor:
    top, left = (frames.shape[-2] - height) // 2, (frames.shape[-1] - width) // 2
    return frames[..., top : top + height, left : left + width]
