"""Sensor noise, drawn anew for every pixel, channel and frame."""

import torch
from torch import Tensor

from vidcsl.robustness.corruptions.draws import (
    Generators,
    draw_each,
    normal_like,
    uniform_like,
)


def gaussian_noise(clips: Tensor, *, generators: Generators, sigma: float) -> Tensor:
    """Add normal noise of standard deviation `sigma` (in units of [0, 1] pixels)."""
    return clips + sigma * normal_like(clips, generators=generators)


def shot_noise(clips: Tensor, *, generators: Generators, rate: float) -> Tensor:
    """Poisson noise: a white pixel counts `rate` photons on average."""
    # Each clip's counts depend on its pixels, so the draw itself happens on the CPU, clip by clip.
    photons = iter(clips.cpu() * rate)
    return draw_each(
        generators, lambda g: torch.poisson(next(photons), generator=g), device=clips.device
    ).div_(rate)


def impulse_noise(clips: Tensor, *, generators: Generators, amount: float) -> Tensor:
    """Salt and pepper: a share `amount` of the values becomes 0 or 1, half each."""
    draw = uniform_like(clips, generators=generators)
    salted = torch.where(draw > 1 - amount / 2, torch.ones_like(clips), clips)
    return torch.where(draw < amount / 2, torch.zeros_like(clips), salted)


def speckle_noise(clips: Tensor, *, generators: Generators, sigma: float) -> Tensor:
    """Multiplicative normal noise: bright pixels suffer most."""
    return clips + clips * normal_like(clips, generators=generators) * sigma
