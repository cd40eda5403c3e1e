"""A camera that is tilted or shakes. What lies outside the frame is black after a rotation."""

import torch
import torch.nn.functional as F
from torch import Tensor

from vidcsl.robustness.corruptions.draws import Generators, uniform
from vidcsl.robustness.corruptions.layout import to_clips, to_frames


def static_rotation(clips: Tensor, *, generators: Generators, degrees: float) -> Tensor:
    """Rotate the whole clip counter-clockwise by `degrees`."""
    del generators
    return rotate(clips, torch.full((clips.shape[0], clips.shape[2]), float(degrees)))


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
    rows = (torch.arange(height) + shifts[..., :1]).clamp(max=height - 1).to(clips.device)
    columns = (torch.arange(width) + shifts[..., 1:]).clamp(max=width - 1).to(clips.device)
    moved = clips.gather(3, rows[:, None, :, :, None].expand_as(clips))
    return moved.gather(4, columns[:, None, :, None, :].expand_as(clips))


def rotate(clips: Tensor, degrees: Tensor) -> Tensor:
    """Rotate frames about their centre, counter-clockwise, bilinear, black outside.

    Args:
        clips: `[N, 3, T, H, W]`.
        degrees: `[N, T]`.
    """
    height, width = clips.shape[-2:]
    angle = torch.deg2rad(degrees.double()).flatten()
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    # grid_sample measures each axis in half frames, hence the aspect ratio off the diagonal.
    theta = torch.stack([cos, -sin * height / width, zero, sin * width / height, cos, zero], -1)
    frames = to_frames(clips)
    grid = F.affine_grid(theta.view(-1, 2, 3), list(frames.shape), align_corners=False).to(frames)
    turned = F.grid_sample(frames, grid, align_corners=False)
    return to_clips(turned, count=len(clips))
