"""Geometric and colour transforms for batches of clips, and the random numbers that drive them.

In the order in which a training clip meets them: its random numbers (`clip_draws`), its crop box
(`random_resized_boxes`), crop, resize and flip (`crop_resize`), and its colours (`colour_plan`,
`apply_colour_`). `vidcsl.augment.pipeline` puts them together.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2.functional import resized_crop

from vidcsl.errors import UserError
from vidcsl.seeding import numpy_generator

# Random numbers ----------------------------------------------------------------------------------
#
# One row of uniform numbers per clip is the only source of randomness. Every parameter is a pure
# function of its clip's row, so a sample gets the same augmentation in any batch, worker, rank and
# device, and changing one probability leaves all other choices as they were.

CROP_TRIES = 10  # as torchvision's RandomResizedCrop


class ClipDraws(NamedTuple):
    """Uniform numbers in [0, 1), named after what they decide; float32, `[N]` if not noted."""

    area: Tensor  # [N, CROP_TRIES]
    aspect: Tensor  # [N, CROP_TRIES]
    jitter_strengths: Tensor  # [N, 4]: brightness, contrast, saturation, hue
    jitter_order: Tensor  # [N, 4]
    top: Tensor
    left: Tensor
    flip: Tensor
    jitter: Tensor
    gray: Tensor
    blur: Tensor
    blur_sigma: Tensor
    solarise: Tensor
    motion: Tensor


# Numbers per field; a field that is not listed takes one. Append new fields at the end of
# `ClipDraws`: anywhere else they would shift the numbers of the fields behind them.
_WIDTHS = {"area": CROP_TRIES, "aspect": CROP_TRIES, "jitter_strengths": 4, "jitter_order": 4}


def uniform_draws(seeds: Sequence[int], count: int) -> Tensor:
    """Uniform numbers in [0, 1), float32 `[N, count]`; row i depends on `seeds[i]` alone."""
    rows = np.empty((len(seeds), count), dtype=np.float32)
    for row, seed in zip(rows, seeds, strict=True):
        numpy_generator(seed).random(out=row, dtype=np.float32)
    return torch.from_numpy(rows)


def clip_draws(seeds: Sequence[int]) -> ClipDraws:
    """Named uniform numbers for N clips, one seed per clip, on the CPU."""
    widths = [_WIDTHS.get(name, 1) for name in ClipDraws._fields]
    columns = uniform_draws(seeds, sum(widths)).split(widths, dim=1)
    return ClipDraws(*(part.squeeze(1) if part.shape[1] == 1 else part for part in columns))


def between(low: float | Tensor, high: float | Tensor, uniform: Tensor) -> Tensor:
    """Map uniform numbers from [0, 1) to [`low`, `high`)."""
    return low + (high - low) * uniform


# Geometry ----------------------------------------------------------------------------------------
#
# A box is (top, left, height, width) in whole pixels. Boxes are few numbers and stay on the CPU:
# slicing by numbers on a GPU would wait for the device each time.


@dataclass(frozen=True, kw_only=True)
class RandomResizedCrop:
    """Options of the random crop and flip. The defaults crop less than SimCLR (area from 0.08).

    Args:
        area: smallest and largest fraction of the frame's area, in (0, 1].
        aspect: smallest and largest width / height of the crop, above 0.
        flip: probability of a left-right flip, in [0, 1].

    Raises:
        UserError: an option is out of range.
    """

    area: tuple[float, float] = (0.3, 1.0)
    aspect: tuple[float, float] = (0.5, 2.0)
    flip: float = 0.5

    def __post_init__(self) -> None:
        _check_interval("crop_area", self.area, most=1.0)
        _check_interval("crop_aspect", self.aspect)
        _check_probability("flip", self.flip)

    def weakened(self, strength: float) -> "RandomResizedCrop":
        """The crop at `strength` in [0, 1]: 0 is the largest central square, 1 this crop."""
        least, most = self.area
        return replace(
            self,
            area=(1 - strength * (1 - least), 1 - strength * (1 - most)),
            aspect=(self.aspect[0] ** strength, self.aspect[1] ** strength),
        )


def random_resized_boxes(
    draws: ClipDraws, sizes: Tensor, *, area: tuple[float, float], aspect: tuple[float, float]
) -> Tensor:
    """Boxes with a random area, aspect ratio and position (Szegedy et al. 2015).

    The distribution of torchvision's `RandomResizedCrop`: uniform area, log-uniform aspect ratio,
    the first of ten tries that fits, otherwise the largest central box with an allowed aspect.

    Args:
        draws: one row per clip.
        sizes: true (height, width) of the clips, int `[N, 2]`.
        area, aspect: as in `RandomResizedCrop`.

    Returns:
        int64 `[N, 4]` on the CPU.
    """
    # float64, because a float32 draw just below 1, times a length, may round up to the length
    # itself and put the box one pixel outside the frame.
    full = sizes.cpu().double()
    full_height, full_width = full[:, :1], full[:, 1:]  # [N, 1]
    pixels = full_height * full_width * between(*area, draws.area.double())
    ratios = between(math.log(aspect[0]), math.log(aspect[1]), draws.aspect.double()).exp()
    heights = (pixels / ratios).sqrt().round()  # [N, CROP_TRIES]
    widths = (pixels * ratios).sqrt().round()

    fits = (heights >= 1) & (heights <= full_height) & (widths >= 1) & (widths <= full_width)
    first = fits.long().argmax(1, keepdim=True)  # 0 where no try fits; `central` replaces it below
    height, width = heights.gather(1, first), widths.gather(1, first)  # [N, 1]
    top = ((full_height - height + 1) * draws.top[:, None]).floor()
    left = ((full_width - width + 1) * draws.left[:, None]).floor()
    boxes = torch.cat([top, left, height, width], dim=1).long()

    whole = torch.cat(
        [
            (full_width / aspect[0]).round().clamp_min(1).minimum(full_height),
            (full_height * aspect[1]).round().clamp_min(1).minimum(full_width),
        ],
        dim=1,
    ).long()
    central = torch.cat([(sizes.cpu() - whole) // 2, whole], dim=1)
    return torch.where(fits.any(1, keepdim=True), boxes, central)


def centre_boxes(sizes: Tensor, *, ratio: float = 1.0) -> Tensor:
    """The central square of each frame; its side is `ratio` times the short side.

    Resized to S pixels, it equals the usual "resize the short side to S / ratio, crop the centre".

    Args:
        sizes: true (height, width), int `[N, 2]`.
        ratio: fraction of the short side, in (0, 1].

    Returns:
        int64 `[N, 4]` on the CPU.
    """
    return three_boxes(sizes, ratio=ratio)[:, 1]


def three_boxes(sizes: Tensor, *, ratio: float = 1.0) -> Tensor:
    """Three squares along the longer side: at its start, centre and end.

    The spatial views of three-crop testing (Feichtenhofer et al. 2019). Arguments as for
    `centre_boxes`. In a square frame with `ratio` below 1 they lie along the width.

    Returns:
        int64 `[N, 3, 4]` on the CPU.
    """
    sizes = sizes.cpu()
    shorter = sizes.min(1, keepdim=True).values
    side = (shorter.double() * ratio).round().long().clamp_min(1)  # [N, 1]
    spare = sizes - side  # [N, 2]
    is_tall = sizes[:, :1] > sizes[:, 1:]
    is_longer = torch.cat([is_tall, ~is_tall], dim=1)
    centre = spare // 2
    start, end = centre.where(~is_longer, 0), centre.where(~is_longer, spare)
    corners = torch.stack([start, centre, end], dim=1)  # [N, 3, 2]
    return torch.cat([corners, side[:, None].expand(-1, 3, 2)], dim=2)


def crop_resize(
    clips: Tensor | Sequence[Tensor], boxes: Tensor, *, size: int, flip: Tensor | None = None
) -> Tensor:
    """Crop one box from each clip and resize it, bilinear with antialiasing.

    Float clips pass gradients. uint8 clips are rounded to 8 bits, as in every image library, which
    allows integer arithmetic on the CPU; the decoder's memory order `[T, H, W, 3]` is fastest.

    Args:
        clips: uint8 or float `[N, 3, T, H, W]`, or a sequence of N clips `[3, T, H, W]`.
        boxes: (top, left, height, width) inside the frame, int `[N, 4]`.
        size: side S of the output, pixels.
        flip: clips to mirror left to right, bool `[N]`; None mirrors none.

    Returns:
        `[N, 3, T, S, S]`: float32 in [0, 1] from uint8, the input's dtype and range from float.

    Raises:
        ValueError: a box is empty or reaches outside the frame.
    """
    corners, extents = boxes.cpu().split(2, dim=1)
    frame = torch.tensor(clips[0].shape[-2:])
    wrong = ((corners < 0) | (extents < 1) | (corners + extents > frame)).any(1)
    if wrong.any():
        raise ValueError(
            f"box {boxes[wrong.nonzero()[0, 0]].tolist()} (top, left, height, width) is empty or "
            f"leaves its frame of {frame.tolist()} pixels"
        )
    flips = [False] * len(clips) if flip is None else flip.tolist()
    # Clip by clip, which reads only the pixels inside the boxes: half the time of two dense matrix
    # products for the whole batch.
    resized = []
    for clip, box, mirrored in zip(clips, boxes.tolist(), flips, strict=True):
        frames = resized_crop(clip.transpose(0, 1), *box, size=[size, size], antialias=True)
        resized.append((frames.flip(-1) if mirrored else frames).transpose(0, 1))
    if resized[0].is_floating_point():
        return torch.stack(resized)
    # Converted straight into the batch: allocating memory costs more than the arithmetic.
    shape = (len(resized), *resized[0].shape)
    joined = torch.empty(shape, dtype=torch.float32, device=resized[0].device)
    for row, clip in zip(joined, resized, strict=True):
        row.copy_(clip).div_(255)
    return joined


# Colour ------------------------------------------------------------------------------------------
#
# Each operation takes clips in [0, 1], float `[N, 3, T, H, W]`, and one number per clip, which all
# its frames share: a flicker between frames would look like motion. Except for `motion_alone_`, the
# results are torchvision's for the frames `[T, 3, H, W]` of a clip, so contrast moves each frame
# towards its own mean gray.
#
# The operations overwrite their input: a clip is a few megabytes, and a new copy for each of seven
# operations would cost more than the arithmetic.

_LUMA = (0.2989, 0.587, 0.114)  # ITU-R BT.601
# Options that may differ between views, as in BYOL.
_BY_VIEW = ("blur_probability", "solarise_probability", "motion_probability")


@dataclass(frozen=True, kw_only=True)
class RandomColour:
    """Options of the random colour changes. The defaults are SimCLR's without blur (Chen 2020).

    All probabilities lie in [0, 1]. Those of blur, solarise and motion alone may be a sequence with
    one value per view, for asymmetric views as in BYOL (Grill et al. 2020): blur (1.0, 0.1),
    solarise (0.0, 0.2).

    Args:
        jitter: strengths b, c, s, h of brightness, contrast, saturation and hue, from 0 on. The
            factors lie in [max(0, 1 - b), 1 + b] and so on, the hue shift in [-h, h] turns of the
            colour circle; h is at most 0.5.
        jitter_probability: of all four together, in random order.
        gray_probability: of grayscale.
        blur_probability: of a Gaussian blur.
        blur_sigma: smallest and largest standard deviation of the blur, pixels, above 0.
        solarise_probability: of inverting the bright pixels.
        motion_probability: of `motion_alone_`, which removes the static scene, so that two views
            of a video agree in their motion only.

    Raises:
        UserError: an option is out of range.
    """

    jitter: tuple[float, float, float, float] = (0.8, 0.8, 0.8, 0.2)
    jitter_probability: float = 0.8
    gray_probability: float = 0.2
    blur_probability: float | Sequence[float] = 0.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    solarise_probability: float | Sequence[float] = 0.0
    motion_probability: float | Sequence[float] = 0.0

    def __post_init__(self) -> None:
        if len(self.jitter) != 4 or min(self.jitter) < 0 or self.jitter[3] > 0.5:
            raise UserError(
                "jitter must be four numbers (brightness, contrast, saturation, hue), none below 0 "
                f"and hue at most 0.5, got {self.jitter}"
            )
        _check_interval("blur_sigma", self.blur_sigma)
        for name in ("jitter_probability", "gray_probability", *_BY_VIEW):
            _check_probability(name, getattr(self, name))

    def weakened(self, strength: float) -> "RandomColour":
        """The colour changes at `strength` in [0, 1]: 0 changes nothing, 1 is this."""
        brightness, contrast, saturation, hue = (strength * each for each in self.jitter)
        by_view: dict[str, Any] = {}
        for name in _BY_VIEW:
            given = getattr(self, name)
            single = isinstance(given, int | float)
            by_view[name] = strength * given if single else [strength * each for each in given]
        return replace(
            self,
            jitter=(brightness, contrast, saturation, hue),
            jitter_probability=strength * self.jitter_probability,
            gray_probability=strength * self.gray_probability,
            **by_view,
        )


@dataclass(frozen=True, kw_only=True)
class ColourPlan:
    """The drawn colour changes of N clips; all tensors on the CPU."""

    jitter: Tensor  # bool [N]
    strengths: Tensor  # [N, 4]: factors of brightness, contrast and saturation; shift of the hue
    order: Tensor  # int64 [N, 4]: which of the four comes first, second, ...
    gray: Tensor  # bool [N]
    blur: Tensor  # bool [N]
    sigma: Tensor  # [N], pixels
    solarise: Tensor  # bool [N]
    motion: Tensor  # bool [N]

    def rows(self, start: int, stop: int) -> "ColourPlan":
        """The plan of clips `start` to `stop`."""
        return ColourPlan(**{f.name: getattr(self, f.name)[start:stop] for f in fields(self)})


def colour_plan(draws: ClipDraws, options: RandomColour, *, views: int = 1) -> ColourPlan:
    """Turn uniform numbers into colour changes.

    Args:
        draws: one row per clip, N = samples * views, the views of a sample next to each other.
        options: ranges and probabilities.
        views: views per sample.

    Raises:
        UserError: a sequence of probabilities has another length than `views`.
    """
    by_view = {}
    for name in _BY_VIEW:
        given = getattr(options, name)
        values = [given] * views if isinstance(given, int | float) else given
        if len(values) != views:
            raise UserError(
                f"{name} holds {len(values)} values for {views} views: "
                "give one number, or one for each view"
            )
        by_view[name] = torch.tensor(values, dtype=torch.float32).repeat(len(draws.blur) // views)
    *spreads, turn = options.jitter
    low = torch.tensor([max(0.0, 1 - spread) for spread in spreads] + [-turn])
    high = torch.tensor([1 + spread for spread in spreads] + [turn])
    return ColourPlan(
        jitter=draws.jitter < options.jitter_probability,
        strengths=between(low, high, draws.jitter_strengths),
        order=draws.jitter_order.argsort(1),
        gray=draws.gray < options.gray_probability,
        blur=draws.blur < by_view["blur_probability"],
        sigma=between(*options.blur_sigma, draws.blur_sigma),
        solarise=draws.solarise < by_view["solarise_probability"],
        motion=draws.motion < by_view["motion_probability"],
    )


def apply_colour_(clips: Tensor, plan: ColourPlan) -> Tensor:
    """Apply a plan in place: jitter, grayscale, blur, solarise, motion alone.

    The order is that of SimCLR and BYOL (Chen et al. 2020, Grill et al. 2020).
    """
    if not (plan.jitter | plan.gray | plan.blur | plan.solarise | plan.motion).any():
        return clips
    jitters = (brightness_, contrast_, saturation_, hue_)
    # Lists: comparing single tensor elements costs more than the arithmetic on a small clip.
    orders = {row: plan.order[row].tolist() for row in _rows(plan.jitter)}
    for place in range(len(jitters)):
        for kind, operation in enumerate(jitters):
            rows = [row for row, order in orders.items() if order[place] == kind]
            _on_rows(clips, rows, operation, plan.strengths[:, kind])
    _on_rows(clips, _rows(plan.gray), grayscale_)
    _on_rows(clips, _rows(plan.blur), gaussian_blur_, plan.sigma)
    _on_rows(clips, _rows(plan.solarise), solarise_)
    _on_rows(clips, _rows(plan.motion), motion_alone_)
    return clips.clamp_(0, 1)  # rounding may exceed the range by an ulp


def brightness_(clips: Tensor, factors: Tensor) -> Tensor:
    """Multiply each clip by its factor, `[N]`."""
    return clips.mul_(_per_clip(factors, clips)).clamp_(0, 1)


def contrast_(clips: Tensor, factors: Tensor) -> Tensor:
    """Scale the distance to each frame's mean gray by the clip's factor, `[N]`."""
    # The mean of the gray image is the gray of the mean colour, so no gray image is computed.
    return _blend_(clips, _gray(clips.mean((-2, -1), keepdim=True)), factors)


def saturation_(clips: Tensor, factors: Tensor) -> Tensor:
    """Scale the distance to the gray image by the clip's factor, `[N]`."""
    return _blend_(clips, _gray(clips), factors)


def hue_(clips: Tensor, shifts: Tensor) -> Tensor:
    """Shift the hue of each clip, `[N]`, in [-0.5, 0.5] turns of the colour circle.

    The rotation of HSV space (Smith 1978) without the branches of the usual conversion, which a
    batch would have to compute for every pixel. Angles are in sixths of a turn from red, and
    `distance` runs around the circle. A channel at angle `c` has the value
    `high - chroma * clamp(distance(hue, c) - 1, 0, 1)`, and rotating the hue one way equals
    rotating the three `c` the other way.
    """
    red, green, blue = clips.unbind(1)
    high = torch.maximum(red, green).maximum(blue)
    chroma = high - torch.minimum(red, green).minimum(blue)
    scale = chroma.clamp_min(torch.finfo(chroma.dtype).tiny).reciprocal_()  # no 0 / 0 on gray
    # side = (green - blue) / chroma, lack = (high - red) / chroma. The distance from red is |side|
    # where red is the highest channel (lack 0), 1 + lack where it is the middle one (|side| 1) and
    # 3 - |side| where it is the lowest (lack 1): in one formula, |side| + lack * (3 - 2 |side|).
    side = (green - blue).mul_(scale)
    lack = (high - red).mul_(scale)
    away = side.abs()
    hue = torch.add(away, lack.mul_(3 - 2 * away)).copysign_(side)  # in [-3, 3]
    base = high.sub_(chroma, alpha=2)
    turns = 6 * _per_clip(shifts, clips)[:, 0]
    for channel, own in ((red, 0), (green, 2), (blue, 4)):
        # For angles in [-3, 3], distance = 3 - ||hue - c| - 3|; so 1 - clamp(distance - 1, 0, 1)
        # is clamp(||hue - c| - 3|, 1, 2) - 1.
        centre = (own - turns + 3).remainder(6) - 3
        folded = (hue - centre).abs_().sub_(3).abs_().clamp_(1, 2)
        torch.addcmul(base, chroma, folded, out=channel)
    return clips


def grayscale_(clips: Tensor) -> Tensor:
    """Replace all three channels with their luma."""
    return clips.copy_(_gray(clips))


def gaussian_blur_(clips: Tensor, sigmas: Tensor) -> Tensor:
    """Blur each frame with the clip's standard deviation, `[N]`, in pixels.

    The kernel is a tenth of the frame wide, as in SimCLR (Chen et al. 2020), odd and at least 3
    pixels. Borders are reflected.
    """
    height, width = clips.shape[-2:]
    radius = max(1, min(height, width) // 20)
    # A blur is separable: one banded matrix for the rows, one for the columns. As a batched product
    # it takes a different kernel for each clip in one launch.
    rows = _blur_matrices(sigmas, height, radius).to(clips)[:, None, None]
    columns = _blur_matrices(sigmas, width, radius).to(clips)[:, None, None].mT
    # Under a caller's autocast the products would run in 16 bits.
    with torch.autocast(clips.device.type, enabled=False):
        return clips.copy_(rows @ (clips @ columns))


def solarise_(clips: Tensor) -> Tensor:
    """Invert the pixels brighter than 0.5."""
    return torch.minimum(clips, 1 - clips, out=clips)


def motion_alone_(clips: Tensor) -> Tensor:
    """Subtract each pixel's mean over time and add 0.5, which removes the static scene.

    Our own transform, similar in aim to the residual frames of Tao et al. ("Self-supervised Video
    Representation Learning Using Inter-intra Contrastive Framework", 2020).
    """
    return clips.sub_(clips.mean(dim=2, keepdim=True)).add_(0.5).clamp_(0, 1)


def _rows(chosen: Tensor) -> list[int]:
    return [row for row, is_chosen in enumerate(chosen.tolist()) if is_chosen]


def _on_rows(
    clips: Tensor, rows: list[int], operation: Callable[..., Tensor], *numbers: Tensor
) -> None:
    """Apply an operation in place to the clips of `rows`, without a copy if these are all."""
    if len(rows) == len(clips):
        operation(clips, *numbers)
    elif rows:
        where = torch.tensor(rows, device=clips.device)
        part = operation(clips[where], *(number[rows] for number in numbers))
        clips.index_copy_(0, where, part)


def _per_clip(numbers: Tensor, clips: Tensor) -> Tensor:
    return numbers.to(clips).view(-1, 1, 1, 1, 1)


def _gray(clips: Tensor) -> Tensor:
    """`[N, 3, ...]` to `[N, 1, ...]`."""
    red, green, blue = clips.split(1, dim=1)
    return (red * _LUMA[0]).add_(green, alpha=_LUMA[1]).add_(blue, alpha=_LUMA[2])


def _blend_(clips: Tensor, reference: Tensor, factors: Tensor) -> Tensor:
    """`factor * clip + (1 - factor) * reference`, clamped to [0, 1]."""
    factor = _per_clip(factors, clips)
    return clips.mul_(factor).add_(reference * (1 - factor)).clamp_(0, 1)


def _blur_matrices(sigmas: Tensor, length: int, radius: int) -> Tensor:
    """`[N, length, length]`: row i holds the kernel weights around pixel i, borders reflected."""
    offsets = torch.arange(-radius, radius + 1)
    kernels = torch.softmax(-0.5 * (offsets / sigmas[:, None]) ** 2, dim=1)  # [N, K]
    sources = (torch.arange(length)[:, None] + offsets).abs()  # [length, K]
    sources = length - 1 - (length - 1 - sources).abs()
    matrices = torch.zeros(len(sigmas), length, length)
    return matrices.scatter_add_(
        2, sources.expand(len(sigmas), -1, -1), kernels[:, None].expand(-1, length, -1)
    )


# Checks ------------------------------------------------------------------------------------------


def _check_interval(name: str, interval: Sequence[float], most: float = float("inf")) -> None:
    if len(interval) != 2 or not 0 < interval[0] <= interval[1] <= most:
        limit = "" if most == float("inf") else f" <= {most:g}"
        raise UserError(f"{name} must be two numbers, 0 < low <= high{limit}, got {interval}")


def _check_probability(name: str, probability: float | Sequence[float]) -> None:
    values = [probability] if isinstance(probability, int | float) else probability
    if not all(0 <= value <= 1 for value in values):
        raise UserError(f"{name} must lie in [0, 1], got {probability}")
