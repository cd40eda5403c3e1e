"""Fog, rain and snow, drawn over the frames."""

import math

import numpy as np
import torch
from torch import Tensor

from vidcsl.robustness.corruptions.blur import reflect
from vidcsl.robustness.corruptions.draws import Generators, draw_each, random_bits, uniform

RAIN_SHADE = 220 / 255  # a light grey


def fog(clips: Tensor, *, generators: Generators, scale: float, decay: float) -> Tensor:
    """Blend one cloud of strength `scale` into the whole clip; a larger `decay` is smoother."""
    height, width = clips.shape[-2:]
    size = 1 << max(1, (max(height, width) - 1).bit_length())
    clouds = draw_each(generators, lambda g: plasma_fractal(size, decay=decay, generator=g))
    layer = scale * clouds[:, None, None, :height, :width].to(clips)
    brightest = clips.amax((1, 3, 4), keepdim=True)
    return (clips + layer) * brightest / (brightest + scale)


def rain(
    clips: Tensor,
    *,
    generators: Generators,
    area_per_drop: int,
    length: int,
    darkening: float,
) -> Tensor:
    """Streaks one pixel wide and `length` pixels long, new in every frame, under a dull sky.

    There is one drop per `area_per_drop` pixels. `darkening` scales the contrast about each
    channel's mean. Streaks are cut in frames that are not as high as they are.
    """
    streaks = _streaks(clips, generators=generators, area_per_drop=area_per_drop, length=length)
    veil = RAIN_SHADE * streaks
    gloom = 1 - clips.mean((1, 3, 4), keepdim=True)
    wet = torch.addcmul(clips, veil * gloom, 1 - clips)
    mixed = torch.lerp(clips, _mean_of_9(wet), veil)
    centre = mixed.mean((-2, -1), keepdim=True)
    return mixed.mul_(darkening).add_(centre * (1 - darkening))


def snow(
    clips: Tensor, *, generators: Generators, area_per_flake: int, radius: float, veil: float
) -> Tensor:
    """White flakes that fall and sway through the clip, in air that `veil` makes whiter.

    There is one flake per `area_per_flake` pixels, with a radius between `radius / 2` and `radius`
    pixels. From frame to frame it sinks by one to two times its radius.
    """
    white = veil + (1 - veil) * _flakes(clips, generators, area_per_flake, radius)
    return clips + white.to(clips.device) * (1 - clips)


def plasma_fractal(size: int, *, decay: float, generator: np.random.Generator) -> Tensor:
    """A cloud `[size, size]` in [0, 1] by the diamond-square algorithm, periodic at its borders.

    Args:
        size: a power of two, at least 2.
        decay: the random step is divided by its square each time the grid is halved.
        generator: draws the random steps.
    """
    cloud = torch.zeros(size, size, dtype=torch.float32)
    step, wobble = size, 1.0

    def around(corners: Tensor) -> Tensor:
        bits = random_bits(corners.shape, generator=generator, kind=np.uint32)
        noise = torch.from_numpy(bits.view(np.int32)).float() * 2.0**-31
        return corners / 4 + wobble * noise

    while step > 1:
        half = step // 2
        corners = cloud[::step, ::step]
        beside = corners + corners.roll(-1, 1)
        centres = around(beside + beside.roll(-1, 0))
        cloud[half::step, half::step] = centres
        # Points between two corners, with a centre on either side.
        cloud[::step, half::step] = around(beside + centres + centres.roll(1, 0))
        cloud[half::step, ::step] = around(
            corners + corners.roll(-1, 0) + centres + centres.roll(1, 1)
        )
        # Squared, as the published code multiplies by its step size twice.
        step, wobble = half, wobble / decay**2
    cloud -= cloud.min()
    return cloud / cloud.max()


def _mean_of_9(clips: Tensor) -> Tensor:
    """Each pixel with its eight neighbours, mirrored at the border as OpenCV does."""
    for dim in (-2, -1):
        size = clips.shape[dim]
        near = reflect(torch.tensor([-1, size]), size=size).to(clips.device)
        ends = clips.index_select(dim, near)
        first, last = ends.split(1, dim)
        padded = torch.cat([first, clips, last], dim)
        clips = padded.narrow(dim, 0, size) + padded.narrow(dim, 1, size)
        clips += padded.narrow(dim, 2, size)
    return clips.div_(9)


def _streaks(clips: Tensor, *, generators: Generators, area_per_drop: int, length: int) -> Tensor:
    """A mask `[N, 1, T, H, W]`, 1 on a streak; streaks lean one pixel to the left."""
    count, frames, (height, width) = len(generators), clips.shape[2], clips.shape[-2:]
    drops = height * width // area_per_drop
    places = uniform(frames, drops, 2, generators=generators)  # [N, T, drops, 2]
    top = (places[..., :1] * max(1, height - length)).long()
    left = (places[..., 1:] * width).long()
    along = torch.arange(length)
    rows, columns = top + along, left - (along >= length / 2).long()
    # What falls outside goes to one spare cell at the end, which is cut off again.
    inside = (rows < height) & (columns >= 0)
    cells = torch.where(inside, rows * width + columns, height * width).flatten(2)
    mask = torch.zeros(count, frames, height * width + 1, dtype=torch.float32)
    mask = mask.scatter_(2, cells, 1.0)[..., :-1]
    return mask.view(count, 1, frames, height, width).to(clips.device)


def _flakes(clips: Tensor, generators: Generators, area_per_flake: int, radius: float) -> Tensor:
    """The coverage of each pixel by snow, `[N, 1, T, H, W]` in [0, 1]; flakes have soft edges."""
    length, (height, width) = clips.shape[2], clips.shape[-2:]
    draws = uniform(max(1, height * width // area_per_flake), 6, generators=generators)
    top, left, size, speed, phase, sway = draws[:, None].unbind(-1)  # [N, 1, flakes]
    times = torch.arange(length, dtype=torch.float32)[:, None]
    radii = radius * (1 + size) / 2
    rows = (top * height + times * radii * (1 + speed)) % height  # [N, T, flakes]
    swing = torch.sin(2 * torch.pi * (phase + times / 16))
    columns = (left * width + 2 * radii * sway * swing) % width
    reach = math.ceil(radius) + 1
    around = torch.arange(-reach, reach + 1)
    y = rows[..., None, None].floor() + around[:, None]  # [N, T, flakes, k, 1]
    x = columns[..., None, None].floor() + around
    distance = torch.hypot(y - rows[..., None, None], x - columns[..., None, None])
    cover = (radii[..., None, None] + 0.5 - distance).clamp(0, 1)
    cells = (y % height) * width + x % width
    canvas = torch.zeros(len(draws), length, height * width, dtype=torch.float32)
    canvas.scatter_reduce_(2, cells.long().flatten(2), cover.flatten(2), "amax")
    return canvas.view(-1, 1, length, height, width)
