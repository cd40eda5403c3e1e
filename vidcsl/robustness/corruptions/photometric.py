"""Sensor noise, exposure and colour."""

import numpy as np
import torch
from torch import Tensor

from vidcsl.robustness.corruptions.draws import (
    LEVELS,
    Generators,
    normal_like,
    pick_like,
    poisson_counts,
    to_bytes,
    uniform,
)

# ----------------------------------------------------------------------
# Sensor noise, drawn anew for every pixel, channel and frame.

_WHITE = 255


def gaussian_noise(clips: Tensor, *, generators: Generators, sigma: float) -> Tensor:
    """Add normal noise of standard deviation `sigma` (in units of [0, 1] pixels)."""
    return normal_like(clips, generators=generators).mul_(sigma).add_(clips)


def shot_noise(clips: Tensor, *, generators: Generators, rate: float) -> Tensor:
    """Poisson noise: a white pixel counts `rate` photons on average; pixels have 8 bits."""
    means = [rate * level / _WHITE for level in range(_WHITE + 1)]
    counts = poisson_counts(to_bytes(clips).cpu(), means, generators=generators)
    return counts.div_(rate).to(clips.device)


def impulse_noise(clips: Tensor, *, generators: Generators, amount: float) -> Tensor:
    """Salt and pepper: a ratio `amount` of the values becomes 0 or 1, half each."""
    half = round(amount / 2 * LEVELS)
    steps = np.zeros(LEVELS, np.float32)
    steps[:half], steps[LEVELS - half :] = -1, 1  # a whole step leads to 0 or 1 from anywhere
    return pick_like(clips, steps, generators=generators).add_(clips).clamp_(0, 1)


def speckle_noise(clips: Tensor, *, generators: Generators, sigma: float) -> Tensor:
    """Multiplicative normal noise: bright pixels suffer most."""
    return normal_like(clips, generators=generators).mul_(sigma).add_(1).mul_(clips)


def low_light(
    clips: Tensor, *, generators: Generators, light: float, photons: float, read_noise: float
) -> Tensor:
    """The scene in `light` times the light, as a sensor counts it (Foi et al., IEEE TIP 2008).

    Pixels are made linear (gamma 2.2) and counted as photons (`photons` for a fully lit white
    pixel), the electronics add normal noise of `read_noise` photons, and gamma is applied again.
    """
    means = [light * photons * (level / _WHITE) ** 2.2 for level in range(_WHITE + 1)]
    counts = poisson_counts(to_bytes(clips).cpu(), means, generators=generators).to(clips.device)
    counts += read_noise * normal_like(clips, generators=generators)
    return counts.div_(photons).clamp_(0, 1).pow_(1 / 2.2)


# ----------------------------------------------------------------------
# Exposure and colour.

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
    """Expose every frame by its own U(-stops, stops) photographic stops (factors of 2) more."""
    draws = uniform(clips.shape[2], generators=generators)
    # By Python's floats: torch computes the last numbers of a tensor, which are other ones in each
    # batch, by another routine, whose last bit differs.
    powers = [[2.0 ** (stops * (2 * draw - 1)) for draw in row] for row in draws.tolist()]
    gains = torch.tensor(powers, dtype=torch.float32, device=clips.device)
    return clips * gains[:, None, :, None, None]


def banding(clips: Tensor, *, generators: Generators, levels: int) -> Tensor:
    """Round every channel to `levels` evenly spaced values, so that gradients become steps."""
    del generators
    return (clips * (levels - 1)).round_().div_(levels - 1)
