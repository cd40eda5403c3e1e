"""The same pixels in the layouts that image operators and codecs want."""

import torch
from torch import Tensor


def to_frames(clips: Tensor) -> Tensor:
    """Clips `[N, C, T, H, W]` as a batch of images `[N * T, C, H, W]`."""
    return clips.transpose(1, 2).flatten(0, 1)


def to_clips(frames: Tensor, *, count: int) -> Tensor:
    """Images `[N * T, C, H, W]` back to N = `count` clips `[N, C, T, H, W]`."""
    return frames.unflatten(0, (count, -1)).transpose(1, 2)


def to_bytes(clips: Tensor) -> Tensor:
    """[0, 1] floats to the nearest of 256 levels, uint8."""
    return (clips * 255).round_().clamp_(0, 255).to(torch.uint8)
