"""Exposure and colour: contrast, brightness, saturation, flicker, banding."""

import torch
from torch import Tensor

from vidcsl.robustness.corruptions.draws import Generators, uniform

SMALLEST = 1e-8  # keeps a division by a black pixel finite


def contrast(clips: Tensor, *, generators: Generators, factor: float) -> Tensor:
    """Shrink the distance to each frame's and channel's mean by `factor`."""
    del generators
    mean = clips.mean((-2, -1), keepdim=True)
    return mean + (clips - mean) * factor


def brightness(clips: Tensor, *, generators: Generators, increase: float) -> Tensor:
    """Add `increase` to the value in HSV; hue and saturation stay."""
    del generators
    value = clips.amax(1, keepdim=True)
    brighter = (value + increase).clamp(max=1)
    # With hue and saturation fixed, RGB is proportional to the value; black turns grey.
    return torch.where(value > 0, clips * (brighter / value.clamp(min=SMALLEST)), brighter)


def saturate(clips: Tensor, *, generators: Generators, factor: float, increase: float) -> Tensor:
    """Saturation in HSV times `factor` plus `increase`; hue and value stay.

    A grey pixel has no hue and counts as red, as in the published code: with an increase it turns
    reddish.
    """
    del generators
    value = clips.amax(1, keepdim=True)
    spread = value - clips.amin(1, keepdim=True)
    saturation = spread / value.clamp(min=SMALLEST)
    target = (saturation * factor + increase).clamp(0, 1)
    coloured = value - (value - clips) * (target / saturation.clamp(min=SMALLEST))
    red = clips.new_tensor([1.0, 0.0, 0.0]).view(3, 1, 1, 1)
    reddish = value * (1 - target * (1 - red))
    return torch.where(spread > 0, coloured, reddish)


def exposure_flicker(clips: Tensor, *, generators: Generators, stops: float) -> Tensor:
    """Every frame is exposed by its own U(-stops, stops) photographic stops more, factors of 2."""
    draws = uniform(clips.shape[2], generators=generators)
    gains = torch.exp2(stops * (2 * draws - 1)).to(clips.device)
    return clips * gains[:, None, :, None, None]


def banding(clips: Tensor, *, generators: Generators, levels: int) -> Tensor:
    """Round every channel to `levels` evenly spaced values, so that slopes turn into steps."""
    del generators
    return (clips * (levels - 1)).round_().div_(levels - 1)
