"""Sensor noise, drawn anew for every pixel, channel and frame."""

import numpy as np
from torch import Tensor

from vidcsl.robustness.corruptions.draws import LEVELS, Generators, normal_like, pick_like
from vidcsl.robustness.corruptions.layout import to_bytes
from vidcsl.robustness.corruptions.poisson import poisson_counts

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
    """Salt and pepper: a share `amount` of the values becomes 0 or 1, half each."""
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
    """A scene with `light` times the light, seen by a sensor that counts it.

    The picture is made linear (gamma 2.2), its light counted as photons (a fully lit white pixel
    gives `photons`), the electronics add normal noise of `read_noise` photons, and gamma is
    applied again. The model of Foi et al., IEEE TIP 2008.
    """
    means = [light * photons * (level / _WHITE) ** 2.2 for level in range(_WHITE + 1)]
    counts = poisson_counts(to_bytes(clips).cpu(), means, generators=generators).to(clips.device)
    counts += read_noise * normal_like(clips, generators=generators)
    return counts.div_(photons).clamp_(0, 1).pow_(1 / 2.2)
