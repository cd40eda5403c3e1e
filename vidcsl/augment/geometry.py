"""Crop boxes, and the crop, resize and flip that every clip goes through.

A box is (top, left, height, width) in whole pixels. Boxes are few numbers and stay on the CPU, so
that slicing by them never waits for the device.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.transforms.v2.functional import resized_crop

from vidcsl.augment.draws import ClipDraws, between


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
