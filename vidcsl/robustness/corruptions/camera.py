"""A camera that is tilted, shakes, or is partly covered.

Pixels from outside the frame are black after a rotation, and repeat the edge after a shift.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from vidcsl.robustness.corruptions.draws import Generators, normal, to_clips, to_frames, uniform

_SHAKE_FRAMES = 2


def static_rotation(clips: Tensor, *, generators: Generators, degrees: float) -> Tensor:
    """Rotate the whole clip counter-clockwise by `degrees`."""
    del generators
    # All frames turn alike, so they pass as the channels of one image: one grid in place of T.
    images = clips.flatten(1, 2)
    still = torch.zeros(len(images), 2)
    angles = torch.full((len(images),), float(degrees))
    turned = _moved(images, angles, still, outside="zeros")
    return turned.view(clips.shape)


def random_rotation(clips: Tensor, *, generators: Generators, degrees: int) -> Tensor:
    """Rotate every frame by its own whole number of degrees in [-degrees, degrees]."""
    draws = uniform(clips.shape[2], generators=generators)
    return rotate(clips, (draws * (2 * degrees + 1)).floor() - degrees)


def translation(clips: Tensor, *, generators: Generators, offset: int) -> Tensor:
    """Move every frame up and left by its own 0 .. offset - 1 pixels.

    The published code cuts 224 pixels out of a larger frame; a clip has no pixels beyond its
    border, so the last row and column are repeated there.
    """
    shifts = (uniform(clips.shape[2], 2, generators=generators) * offset).long()  # [N, T, 2]
    height, width = clips.shape[-2:]
    limit = torch.tensor([height - 1, width - 1])
    moved = torch.empty_like(clips)
    for clip, out, steps in zip(clips, moved, shifts.minimum(limit).tolist(), strict=True):
        for t, (up, left) in enumerate(steps):
            out[:, t, : height - up, : width - left] = clip[:, t, up:, left:]
            out[:, t, : height - up, width - left :] = clip[:, t, up:, -1:]
            out[:, t, height - up :] = out[:, t, height - up - 1, None]
    return moved


def camera_shake(clips: Tensor, *, generators: Generators, shift: float, degrees: float) -> Tensor:
    """A hand-held camera: shifts and rolls along a smooth random path.

    Args:
        shift: standard deviation across and down, as a ratio of the frame.
        degrees: standard deviation of the roll.

    The path is normal noise smoothed over time by a Gaussian with a deviation of two frames.
    """
    reach = 3 * _SHAKE_FRAMES
    distances = torch.arange(-reach, reach + 1, dtype=torch.float32)
    taps = torch.exp(-(distances**2) / (2 * _SHAKE_FRAMES**2))
    taps /= taps.square().sum().sqrt()  # keeps the variance
    noise = normal(clips.shape[2] + 2 * reach, 3, generators=generators)
    path = (noise.unfold(1, 2 * reach + 1, 1) * taps).sum(-1)  # [N, T, 3]
    steps = path.flatten(0, 1)
    shifts, rolls = 2 * shift * steps[:, :2], degrees * steps[:, 2]
    moved = _moved(to_frames(clips), rolls, shifts, outside="border")
    return to_clips(moved, count=len(clips))


def occlusion(clips: Tensor, *, generators: Generators, share: float) -> Tensor:
    """A rectangle of one colour covers `share` of the frame and moves through it on a line.

    It has the frame's proportions and stays inside the frame. Its start, its end and its colour are
    random.
    """
    draws = uniform(7, generators=generators)
    progress = torch.linspace(0, 1, clips.shape[2], dtype=torch.float32)[:, None]
    place = torch.lerp(draws[:, None, :2], draws[:, None, 2:4], progress)  # [N, T, 2]
    sides = [_hidden(n, share**0.5, place[..., i]) for i, n in enumerate(clips.shape[-2:])]
    hidden = (sides[0][..., :, None] & sides[1][..., None, :])[:, None].to(clips.device)
    return torch.where(hidden, draws[:, 4:, None, None, None].to(clips.device), clips)


def _hidden(size: int, share: float, place: Tensor) -> Tensor:
    """Which of `size` pixels a bar covers, bool `[N, T, size]`, its place in [0, 1] `[N, T]`."""
    length = max(1, round(size * share))
    start = (place * (size - length)).round()[..., None]
    pixels = torch.arange(size)
    return (pixels >= start) & (pixels < start + length)


def rotate(clips: Tensor, degrees: Tensor) -> Tensor:
    """Rotate frames about their centre, counter-clockwise, bilinear, black outside.

    Args:
        clips: `[N, 3, T, H, W]`.
        degrees: `[N, T]`.
    """
    still = torch.zeros(degrees.numel(), 2)
    turned = _moved(to_frames(clips), degrees.flatten(), still, outside="zeros")
    return to_clips(turned, count=len(clips))


def _moved(images: Tensor, degrees: Tensor, shifts: Tensor, *, outside: str) -> Tensor:
    """Rotate images `[M, C, H, W]` by `[M]` and move the camera by `[M, 2]` half frames (x, y)."""
    height, width = images.shape[-2:]
    angle = torch.deg2rad(degrees.double())
    cos, sin = angle.cos(), angle.sin()
    across, down = shifts.double().unbind(-1)
    # grid_sample measures each axis in half frames, hence the aspect ratio off the diagonal.
    theta = torch.stack([cos, -sin * height / width, across, sin * width / height, cos, down], -1)
    grid = F.affine_grid(theta.view(-1, 2, 3), list(images.shape), align_corners=False).to(images)
    return F.grid_sample(images, grid, align_corners=False, padding_mode=outside)
