"""Geometry and colour of augmentation, on batches of clips, one row of random numbers a clip."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2.functional import resized_crop

from vidcsl.seeding import numpy_generator

# ----------------------------------------------------------------------
# One row of uniform numbers for each clip: the only source of chance in augmentation.
#
# Every parameter of an augmentation is a pure function of its clip's row. So a sample is augmented
# the same way whatever its batch, worker, rank or device, and changing one probability leaves all
# other choices as they were.

CROP_TRIES = 10


class ClipDraws(NamedTuple):
    """Uniform numbers in [0, 1), named by what they decide; float32, `[N]` unless said."""

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


# Columns of each field in the row; a field not named here has one. A new field goes to the end,
# where it leaves the numbers of the others alone.
_WIDTHS = {"area": CROP_TRIES, "aspect": CROP_TRIES, "jitter_strengths": 4, "jitter_order": 4}


def uniform_draws(seeds: Sequence[int], count: int) -> Tensor:
    """Uniform numbers in [0, 1), float32 `[N, count]`; row i depends on `seeds[i]` alone."""
    rows = np.empty((len(seeds), count), dtype=np.float32)
    for row, seed in zip(rows, seeds, strict=True):
        numpy_generator(seed).random(out=row, dtype=np.float32)
    return torch.from_numpy(rows)


def clip_draws(seeds: Sequence[int]) -> ClipDraws:
    """The named uniform numbers of N clips, one seed each, on the CPU."""
    widths = [_WIDTHS.get(name, 1) for name in ClipDraws._fields]
    columns = uniform_draws(seeds, sum(widths)).split(widths, dim=1)
    return ClipDraws(*(part.squeeze(1) if part.shape[1] == 1 else part for part in columns))


def between(low: float | Tensor, high: float | Tensor, uniform: Tensor) -> Tensor:
    """Spread uniform numbers in [0, 1) over `low` to `high`."""
    return low + (high - low) * uniform


# ----------------------------------------------------------------------
# Crop boxes, and the crop, resize and flip that every clip goes through.
#
# A box is (top, left, height, width) in whole pixels. Boxes are few numbers and stay on the CPU, so
# that slicing by them never waits for the device.


def random_resized_boxes(
    draws: ClipDraws, sizes: Tensor, *, area: tuple[float, float], aspect: tuple[float, float]
) -> Tensor:
    """Boxes of a random area and aspect ratio at a random place (Szegedy et al. 2015).

    The same law as torchvision's `RandomResizedCrop`: area uniform, aspect log-uniform, the first
    of ten tries that fits, otherwise the largest central box with an allowed aspect ratio.

    Args:
        draws: one row for each clip.
        sizes: the clips' true (height, width), int `[N, 2]`.
        area: smallest and largest share of the frame's area.
        aspect: smallest and largest width / height.

    Returns:
        int64 `[N, 4]` on the CPU.
    """
    # float64: a float32 draw just below 1 times a length may round up, to one pixel too far.
    full = sizes.cpu().double()
    full_height, full_width = full[:, :1], full[:, 1:]  # [N, 1]
    pixels = full_height * full_width * between(*area, draws.area.double())
    ratios = between(math.log(aspect[0]), math.log(aspect[1]), draws.aspect.double()).exp()
    heights = (pixels / ratios).sqrt().round()  # [N, CROP_TRIES]
    widths = (pixels * ratios).sqrt().round()

    fits = (heights >= 1) & (heights <= full_height) & (widths >= 1) & (widths <= full_width)
    first = fits.long().argmax(1, keepdim=True)
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

    Resized to S pixels this is the usual "short side to S / ratio, then a central crop of S".

    Args:
        sizes: true (height, width), int `[N, 2]`.
        ratio: share of the short side that is kept, in (0, 1].

    Returns:
        int64 `[N, 4]` on the CPU.
    """
    return three_boxes(sizes, ratio=ratio)[:, 1]


def three_boxes(sizes: Tensor, *, ratio: float = 1.0) -> Tensor:
    """Three squares along the longer side: at its start, centre and end.

    The spatial views of test-time averaging (Feichtenhofer et al. 2019); arguments as for
    `centre_boxes`. On square frames the three lie side by side.

    Returns:
        int64 `[N, 3, 4]` on the CPU.
    """
    sizes = sizes.cpu()
    side = (
        (sizes.min(1, keepdim=True).values.double() * ratio).round().long().clamp_min(1)
    )  # [N, 1]
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
    """Cut one box out of each clip and resize it with antialiased bilinear weights.

    Float clips are resized linearly, so gradients pass through. uint8 clips are rounded to 8 bit,
    as by every image library, which allows integer arithmetic on the CPU; that is fastest for
    frames whose memory is in the decoder's order, `[T, H, W, 3]`.

    One pass for each clip over the pixels inside its box took half the time of resampling the
    batch at once by two dense matrix products.

    Args:
        clips: uint8 or float `[N, 3, T, H, W]`, or N clips, of which some may be the same.
        boxes: (top, left, height, width) of each clip, int `[N, 4]`, inside the frames.
        size: side S of the result.
        flip: which clips to mirror left to right, bool `[N]`; none by default.

    Returns:
        `[N, 3, T, S, S]`: float32 in [0, 1] from uint8, the input's dtype and range from float.

    Raises:
        ValueError: a box is empty or leaves the frame.
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
    resized = []
    for clip, box, mirrored in zip(clips, boxes.tolist(), flips, strict=True):
        frames = resized_crop(clip.transpose(0, 1), *box, size=[size, size], antialias=True)
        resized.append((frames.flip(-1) if mirrored else frames).transpose(0, 1))
    return torch.stack(resized) if resized[0].is_floating_point() else _in_unit_range(resized)


def _in_unit_range(clips: Sequence[Tensor]) -> Tensor:
    """uint8 clips joined as float32 in [0, 1], at once where they stay: fresh memory costs most."""
    shape = (len(clips), *clips[0].shape)
    joined = torch.empty(shape, dtype=torch.float32, device=clips[0].device)
    for row, clip in zip(joined, clips, strict=True):
        row.copy_(clip).div_(255)
    return joined


# ----------------------------------------------------------------------
# Colour jitter, grayscale, blur, solarise and motion alone on batches of clips, in place.
#
# Each operation takes clips in [0, 1], float `[N, 3, T, H, W]`, and one number a clip, which all
# frames of the clip share. All but motion alone give what torchvision gives for the frames
# `[T, 3, H, W]` of that clip, so contrast moves each frame towards its own mean gray.
#
# The operations overwrite their input: a clip is a few megabytes, and a fresh copy for each of
# seven operations would cost more than the arithmetic.

_LUMA = (0.2989, 0.587, 0.114)  # ITU-R BT.601


@dataclass(frozen=True, kw_only=True)
class ColourPlan:
    """What happens to the colours of N clips; all tensors on the CPU."""

    jitter: Tensor  # bool [N]
    strengths: Tensor  # [N, 4]: factors of brightness, contrast and saturation, and the hue's shift
    order: Tensor  # int64 [N, 4]: which of the four comes first, second, ...
    gray: Tensor  # bool [N]
    blur: Tensor  # bool [N]
    sigma: Tensor  # [N], pixels
    solarise: Tensor  # bool [N]
    motion: Tensor  # bool [N]

    def rows(self, start: int, stop: int) -> "ColourPlan":
        """The plan of clips `start` to `stop`."""
        return ColourPlan(**{f.name: getattr(self, f.name)[start:stop] for f in fields(self)})


def colour_plan(
    draws: ClipDraws,
    *,
    jitter: Sequence[float],
    jitter_probability: float,
    gray_probability: float,
    blur_probability: float | Tensor,
    blur_sigma: tuple[float, float],
    solarise_probability: float | Tensor,
    motion_probability: float | Tensor,
) -> ColourPlan:
    """Turn uniform numbers into a plan.

    Args:
        draws: one row for each of N clips.
        jitter: strengths b, c, s, h: factors in [max(0, 1 - b), 1 + b] and so on, hue in [-h, h]
            turns of the colour circle.
        jitter_probability: of the four jitters together, in random order.
        gray_probability: of losing all colour.
        blur_probability: one number, or one for each clip `[N]`.
        blur_sigma: smallest and largest standard deviation, in pixels.
        solarise_probability: one number, or one for each clip `[N]`.
        motion_probability: of losing all that stands still; one number, or one for each clip.
    """
    *spreads, turn = jitter
    low = torch.tensor([max(0.0, 1 - spread) for spread in spreads] + [-turn])
    high = torch.tensor([1 + spread for spread in spreads] + [turn])
    return ColourPlan(
        jitter=draws.jitter < jitter_probability,
        strengths=between(low, high, draws.jitter_strengths),
        order=draws.jitter_order.argsort(1),
        gray=draws.gray < gray_probability,
        blur=draws.blur < blur_probability,
        sigma=between(*blur_sigma, draws.blur_sigma),
        solarise=draws.solarise < solarise_probability,
        motion=draws.motion < motion_probability,
    )


def apply_colour_(clips: Tensor, plan: ColourPlan) -> Tensor:
    """Jitter, grayscale, blur, solarise (Chen et al. 2020, Grill et al. 2020), motion alone."""
    if not (plan.jitter | plan.gray | plan.blur | plan.solarise | plan.motion).any():
        return clips
    jitters = (brightness_, contrast_, saturation_, hue_)
    # Lists, because comparing single tensor elements costs more than a small clip's arithmetic.
    orders = {row: plan.order[row].tolist() for row in _rows(plan.jitter)}
    for place in range(len(jitters)):
        for kind, operation in enumerate(jitters):
            rows = [row for row, order in orders.items() if order[place] == kind]
            _on_rows(clips, rows, operation, plan.strengths[:, kind])
    _on_rows(clips, _rows(plan.gray), grayscale_)
    _on_rows(clips, _rows(plan.blur), gaussian_blur_, plan.sigma)
    _on_rows(clips, _rows(plan.solarise), solarise_)
    _on_rows(clips, _rows(plan.motion), motion_alone_)
    return clips.clamp_(0, 1)  # rounding may have left it by a hair


def brightness_(clips: Tensor, factors: Tensor) -> Tensor:
    """Multiply by one factor a clip, `[N]`."""
    return clips.mul_(_per_clip(factors, clips)).clamp_(0, 1)


def contrast_(clips: Tensor, factors: Tensor) -> Tensor:
    """Scale the distance to each frame's mean gray by one factor a clip, `[N]`."""
    # The mean of the gray image is the gray of the mean colour: no gray image is needed.
    return _blend_(clips, _gray(clips.mean((-2, -1), keepdim=True)), factors)


def saturation_(clips: Tensor, factors: Tensor) -> Tensor:
    """Scale the distance to the gray image by one factor a clip, `[N]`."""
    return _blend_(clips, _gray(clips), factors)


def hue_(clips: Tensor, shifts: Tensor) -> Tensor:
    """Turn the hue by one shift a clip, `[N]`, in [-0.5, 0.5] turns of the colour circle.

    The turn of HSV space (Smith 1978), without the branches of its usual conversion: angles are in
    sixths of a turn from red, and `distance` runs around the circle. A channel whose own angle is
    `c` has the value `high - chroma * clamp(distance(hue, c) - 1, 0, 1)`, and turning the hue one
    way is turning the three `c` the other way.
    """
    red, green, blue = clips.unbind(1)
    high = torch.maximum(red, green).maximum(blue)
    chroma = high - torch.minimum(red, green).minimum(blue)
    scale = chroma.clamp_min(torch.finfo(chroma.dtype).tiny).reciprocal_()  # gray pixels: hue 0
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
    """Replace all three channels by their luma."""
    return clips.copy_(_gray(clips))


def gaussian_blur_(clips: Tensor, sigmas: Tensor) -> Tensor:
    """Blur each frame; one standard deviation a clip, `[N]`, in pixels.

    The kernel's side is a tenth of the frame's, as in SimCLR (Chen et al. 2020), odd and at least
    3; borders are reflected.
    """
    height, width = clips.shape[-2:]
    radius = max(1, min(height, width) // 20)
    rows = _blur_matrices(sigmas, height, radius).to(clips)[:, None, None]
    columns = _blur_matrices(sigmas, width, radius).to(clips)[:, None, None].mT
    # Under a caller's autocast the products would drop to 16 bit.
    with torch.autocast(clips.device.type, enabled=False):
        return clips.copy_(rows @ (clips @ columns))


def solarise_(clips: Tensor) -> Tensor:
    """Invert the pixels that are brighter than one half."""
    return torch.minimum(clips, 1 - clips, out=clips)


def motion_alone_(clips: Tensor) -> Tensor:
    """Each pixel less its mean over the clip's frames, around mid gray: what stands still is gone.

    Ours; views without their scene are in the spirit of the residual frames of Tao et al.
    ("Self-supervised Video Representation Learning Using Inter-intra Contrastive Framework", 2020).
    """
    return clips.sub_(clips.mean(dim=2, keepdim=True)).add_(0.5).clamp_(0, 1)


def _rows(chosen: Tensor) -> list[int]:
    return [row for row, is_chosen in enumerate(chosen.tolist()) if is_chosen]


def _on_rows(
    clips: Tensor, rows: list[int], operation: Callable[..., Tensor], *numbers: Tensor
) -> None:
    """Apply an operation in place to these clips alone; all or none cost no copy."""
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
    """`[N, length, length]`: row i holds the kernel's weights around pixel i, borders reflected."""
    offsets = torch.arange(-radius, radius + 1)
    kernels = torch.softmax(-0.5 * (offsets / sigmas[:, None]) ** 2, dim=1)  # [N, K]
    sources = (torch.arange(length)[:, None] + offsets).abs()  # [length, K]
    sources = length - 1 - (length - 1 - sources).abs()
    matrices = torch.zeros(len(sigmas), length, length)
    return matrices.scatter_add_(
        2, sources.expand(len(sigmas), -1, -1), kernels[:, None].expand(-1, length, -1)
    )
