import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from vidcsl.augment.transforms import (
    ClipDraws,
    centre_boxes,
    clip_draws,
    crop_resize,
    random_resized_boxes,
    three_boxes,
)

SIDES = st.integers(1, 300)


def naive_box(
    draws: ClipDraws, row: int, height: int, width: int, area: tuple, aspect: tuple
) -> list[int]:
    """The loop of tries, one at a time."""
    for u, v in zip(draws.area[row].tolist(), draws.aspect[row].tolist(), strict=True):
        pixels = height * width * (area[0] + u * (area[1] - area[0]))
        low, high = math.log(aspect[0]), math.log(aspect[1])
        ratio = math.exp(low + v * (high - low))
        h, w = round(math.sqrt(pixels / ratio)), round(math.sqrt(pixels * ratio))
        if 0 < h <= height and 0 < w <= width:
            top = int(draws.top[row].item() * (height - h + 1))
            return [top, int(draws.left[row].item() * (width - w + 1)), h, w]
    h, w = height, width
    if width / height < aspect[0]:
        h = max(1, round(width / aspect[0]))
    elif width / height > aspect[1]:
        w = max(1, round(height * aspect[1]))
    return [(height - h) // 2, (width - w) // 2, h, w]


def naive_weights(start: int, length: int, full: int, size: int) -> Tensor:
    """Triangle filter by its definition: [size, full], zero outside start .. start + length."""
    weights = torch.zeros(size, full, dtype=torch.float64)
    scale = length / size
    for i in range(size):
        centre = start + (i + 0.5) * scale
        for j in range(start, start + length):
            weights[i, j] = max(0.0, 1 - abs(j + 0.5 - centre) / max(scale, 1.0))
        weights[i] /= weights[i].sum()
    return weights


@given(
    seed=st.integers(0, 10**6),
    shapes=st.lists(st.tuples(SIDES, SIDES), min_size=1, max_size=5),
    area=st.tuples(st.floats(0.05, 1.0), st.floats(0.05, 1.0)).map(sorted).map(tuple),
    aspect=st.sampled_from([(0.5, 2.0), (0.75, 4 / 3), (1.0, 1.0), (3.0, 4.0), (0.1, 0.2)]),
)
def test_random_boxes_are_those_of_the_naive_loop(
    seed: int, shapes: list[tuple[int, int]], area: tuple, aspect: tuple
) -> None:
    draws = clip_draws(range(seed, seed + len(shapes)))
    boxes = random_resized_boxes(draws, torch.tensor(shapes), area=area, aspect=aspect)
    assert boxes.dtype == torch.int64
    for row, (height, width) in enumerate(shapes):
        assert boxes[row].tolist() == naive_box(draws, row, height, width, area, aspect)
        top, left, h, w = boxes[row].tolist()
        assert 0 <= top <= top + h <= height
        assert 0 <= left <= left + w <= width
        assert h * w > 0


def test_no_try_fits_a_strip() -> None:
    boxes = random_resized_boxes(
        clip_draws([0]), torch.tensor([[10, 100]]), area=(0.9, 1.0), aspect=(0.5, 2.0)
    )
    assert boxes.tolist() == [[0, 40, 10, 20]]


def test_random_boxes_follow_the_law_of_torchvision() -> None:
    height, width, area, aspect = 128, 171, (0.3, 1.0), (0.5, 2.0)
    ours = random_resized_boxes(
        clip_draws(range(2000)),
        torch.tensor([[height, width]]).expand(2000, 2),
        area=area,
        aspect=aspect,
    ).double()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        crop = v2.RandomResizedCrop(8, area, aspect)
        frame = torch.zeros(3, height, width)
        drawn = [crop.make_params([frame]) for _ in range(2000)]
    theirs = torch.tensor([[p[k] for k in ("top", "left", "height", "width")] for p in drawn])
    assert torch.allclose(ours.mean(0), theirs.double().mean(0), atol=2.5)
    assert torch.allclose(ours.std(0), theirs.double().std(0), atol=2.5)


@pytest.mark.parametrize("box", [(3, 5, 20, 31), (0, 0, 40, 50), (10, 20, 6, 5), (39, 49, 1, 1)])
@pytest.mark.parametrize("size", [7, 16, 33])
@pytest.mark.parametrize("mirrored", [False, True])
def test_float_crop_is_the_triangle_filter(box: tuple, size: int, mirrored: bool) -> None:
    top, left, height, width = box
    clips = torch.rand(1, 3, 2, 40, 50)
    found = crop_resize(clips, torch.tensor([box]), size=size, flip=torch.tensor([mirrored]))
    rows, columns = naive_weights(top, height, 40, size), naive_weights(left, width, 50, size)
    expected = rows @ clips.double() @ columns.T
    expected = expected.flip(-1) if mirrored else expected
    assert found.shape == (1, 3, 2, size, size)
    assert found.is_contiguous()
    assert torch.allclose(found.double(), expected, atol=1e-5)


@pytest.mark.parametrize("channels_last", [False, True])
def test_uint8_crop_is_the_float_crop_within_rounding(channels_last: bool) -> None:
    clips = torch.randint(0, 256, (4, 3, 3, 40, 50), dtype=torch.uint8)
    if channels_last:
        clips = clips.permute(0, 2, 3, 4, 1).contiguous().permute(0, 4, 1, 2, 3)
    boxes = torch.tensor([[3, 5, 20, 31], [0, 0, 40, 50], [10, 20, 6, 5], [2, 2, 30, 12]])
    flip = torch.tensor([True, False, True, False])
    found = crop_resize(clips, boxes, size=16, flip=flip)
    exact = crop_resize(clips.float() / 255, boxes, size=16, flip=flip)
    assert found.dtype == torch.float32
    assert found.is_contiguous()
    assert (found - exact).abs().max() < 1.001 / 255  # half a step along each side
    frames = clips[0].transpose(0, 1)
    theirs = tv.resized_crop(frames, 3, 5, 20, 31, [16, 16], antialias=True)
    assert (found[0].transpose(0, 1) * 255 - tv.horizontal_flip(theirs)).abs().max() < 1e-3


def test_pixels_outside_the_box_do_not_matter() -> None:
    clips = torch.randint(0, 256, (1, 3, 2, 30, 30), dtype=torch.uint8)
    boxes = torch.tensor([[4, 6, 10, 12]])
    before = crop_resize(clips, boxes, size=24)
    inside = clips[..., 4:14, 6:18].clone()
    clips.fill_(0)
    clips[..., 4:14, 6:18] = inside
    assert torch.equal(before, crop_resize(clips, boxes, size=24))


def test_white_stays_in_range() -> None:
    clips = torch.full((1, 3, 2, 37, 53), 255, dtype=torch.uint8)
    assert (crop_resize(clips, torch.tensor([[1, 2, 31, 47]]), size=19) == 1).all()


def test_gradients_pass_through_float_clips() -> None:
    clips = torch.rand(2, 3, 1, 9, 8, dtype=torch.float64, requires_grad=True)
    boxes = torch.tensor([[1, 0, 7, 6], [0, 2, 4, 5]])
    flip = torch.tensor([False, True])
    assert torch.autograd.gradcheck(lambda x: crop_resize(x, boxes, size=4, flip=flip), clips)
    crop_resize(clips, boxes, size=4, flip=flip).sum().backward()
    assert clips.grad is not None
    outside = torch.ones(9, 8, dtype=torch.bool)
    outside[1:8, 0:6] = False
    assert (clips.grad[0][..., outside] == 0).all()
    assert clips.grad[0].sum().item() == pytest.approx(3 * 4 * 4)


@pytest.mark.parametrize("box", [(-1, 0, 4, 4), (0, 0, 0, 4), (5, 0, 4, 4), (0, 7, 4, 4)])
def test_boxes_outside_the_frame_are_errors(box: tuple) -> None:
    with pytest.raises(ValueError, match="leaves its frame of"):
        crop_resize(torch.zeros(1, 3, 1, 8, 10), torch.tensor([box]), size=4)


@given(height=SIDES, width=SIDES, ratio=st.floats(0.1, 1.0))
def test_evaluation_boxes_are_squares_inside_the_frame(
    height: int, width: int, ratio: float
) -> None:
    start, centre, end = three_boxes(torch.tensor([[height, width]]), ratio=ratio)[0].tolist()
    assert centre == centre_boxes(torch.tensor([[height, width]]), ratio=ratio)[0].tolist()
    side = max(1, round(min(height, width) * ratio))
    for top, left, h, w in (start, centre, end):
        assert h == w == side
        assert 0 <= top <= height - side
        assert 0 <= left <= width - side
    assert abs(2 * centre[0] - (height - side)) <= 1
    assert abs(2 * centre[1] - (width - side)) <= 1
    longer = int(width >= height)
    assert start[longer] == 0
    assert end[longer] == max(height, width) - side
    assert start[1 - longer] == end[1 - longer] == centre[1 - longer]


def test_centre_box_shows_what_resize_and_centre_crop_show() -> None:
    ramp = torch.arange(64.0)[None, :] + torch.arange(48.0)[:, None]
    frame = ramp.expand(3, 48, 64)
    resized = tv.resize(frame, [32], antialias=True)
    theirs = tv.center_crop(resized, [28, 28])
    boxes = centre_boxes(torch.tensor([[48, 64]]), ratio=28 / 32)
    ours = crop_resize(frame[None, :, None], boxes, size=28)[0, :, 0]
    assert (ours - theirs)[:, 2:-2, 2:-2].abs().max() < 1.0  # less than a source pixel's step
