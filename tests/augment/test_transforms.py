import math
from itertools import islice
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from vidcsl.augment.transforms import (
    CROP_TRIES,
    ClipDraws,
    RandomColour,
    RandomResizedCrop,
    apply_colour_,
    between,
    brightness_,
    centre_boxes,
    clip_draws,
    colour_plan,
    contrast_,
    crop_resize,
    gaussian_blur_,
    grayscale_,
    hue_,
    motion_alone_,
    random_resized_boxes,
    saturation_,
    solarise_,
    three_boxes,
    uniform_draws,
)
from vidcsl.errors import UserError

VIDEOS = Path(__file__).parents[3] / "shared" / "data" / "ucf101_10_mini"
JITTERS = {
    "brightness": (brightness_, tv.adjust_brightness, 1e-5),
    "contrast": (contrast_, tv.adjust_contrast, 1e-5),
    "saturation": (saturation_, tv.adjust_saturation, 1e-5),
    "hue": (hue_, tv.adjust_hue, 1e-4),
}
UNCHANGED = {"jitter_probability": 0.0, "gray_probability": 0.0}
SEEDS = st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=6)
SIDES = st.integers(1, 300)


# Random numbers


@given(seeds=SEEDS, count=st.integers(1, 40))
def test_each_row_depends_on_its_seed_alone(seeds: list[int], count: int) -> None:
    rows = uniform_draws(seeds, count)
    assert rows.shape == (len(seeds), count)
    assert rows.dtype == torch.float32
    assert rows.min() >= 0
    assert rows.max() < 1
    for row, seed in zip(rows, seeds, strict=True):
        assert torch.equal(row, uniform_draws([seed], count)[0])


def test_draws_are_uniform_and_uncorrelated() -> None:
    rows = uniform_draws(range(4000), 5).numpy()
    assert np.allclose(rows.mean(0), 0.5, atol=0.02)
    assert np.allclose(rows.var(0), 1 / 12, atol=0.005)
    assert np.allclose(np.corrcoef(rows.T), np.eye(5), atol=0.06)


def test_global_random_state_is_left_alone() -> None:
    torch_before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    clip_draws([1, 2])
    assert torch.equal(torch.get_rng_state(), torch_before)
    assert (np.random.get_state()[1] == numpy_before).all()


def test_every_field_has_numbers_of_its_own() -> None:
    draws = clip_draws([3, 4, 5])
    assert draws.area.shape == draws.aspect.shape == (3, CROP_TRIES)
    assert draws.jitter_order.shape == draws.jitter_strengths.shape == (3, 4)
    singles = set(ClipDraws._fields) - {"area", "aspect", "jitter_order", "jitter_strengths"}
    assert all(getattr(draws, name).shape == (3,) for name in singles)
    numbers = torch.cat([part.flatten() for part in draws])
    assert numbers.unique().numel() == numbers.numel()


def test_between_reaches_its_ends() -> None:
    assert between(-2.0, 3.0, torch.tensor([0.0, 0.5, 1.0])).tolist() == [-2.0, 0.5, 3.0]


# Geometry


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


# Colour


def noise() -> Tensor:
    """Three clips: noise, 8-bit values with many ties and grays, and one almost dark."""
    generator = torch.Generator().manual_seed(0)
    ties = torch.randint(0, 4, (3, 4, 24, 20), generator=generator) / 3
    smooth = torch.rand(3, 4, 24, 20, generator=generator)
    return torch.stack([smooth, ties, 0.02 * smooth.flip(0)])


def real() -> Tensor:
    paths = sorted(VIDEOS.rglob("*.mp4"))[::67][:3]
    if not paths:
        pytest.skip("the test videos are not here")
    clips = []
    for path in paths:
        with av.open(str(path)) as container:
            decoded = islice(container.decode(video=0), 3)
            frames = [frame.to_ndarray(format="rgb24") for frame in decoded]
        clips.append(torch.from_numpy(np.stack(frames)[:, :96, :96]))
    return torch.stack(clips).permute(0, 4, 1, 2, 3).float().div(255).contiguous()


def each_by_torchvision(operation: object, clips: Tensor, numbers: list) -> Tensor:
    frames = [operation(c.transpose(0, 1), *n) for c, n in zip(clips, numbers, strict=True)]
    return torch.stack([f.transpose(0, 1) for f in frames])


@pytest.mark.parametrize("source", [noise, real])
@pytest.mark.parametrize("name", JITTERS)
@pytest.mark.parametrize("strength", [-0.5, -0.1, 0.0, 0.07, 0.5])
def test_jitters_match_torchvision(source: object, name: str, strength: float) -> None:
    ours, theirs, tolerance = JITTERS[name]
    numbers = torch.tensor([strength, strength / 2, -strength]) + (name != "hue")
    clips = source()
    expected = each_by_torchvision(theirs, clips, [[n] for n in numbers.tolist()])
    found = ours(clips.clone(), numbers)
    assert (found - expected).abs().max() < tolerance
    assert found.min() >= 0
    assert found.max() <= 1


@given(
    pixel=st.lists(st.integers(0, 255), min_size=3, max_size=3),
    shift=st.floats(-0.5, 0.5, width=32),
)
def test_hue_of_any_pixel_matches_torchvision(pixel: list[int], shift: float) -> None:
    clip = torch.tensor(pixel).view(1, 3, 1, 1, 1) / 255
    expected = tv.adjust_hue(clip[:, :, 0], shift)[:, :, None]
    assert (hue_(clip.clone(), torch.tensor([shift])) - expected).abs().max() < 1e-4


@pytest.mark.parametrize("source", [noise, real])
def test_grayscale_and_solarise_match_torchvision(source: object) -> None:
    clips = source()
    gray = each_by_torchvision(tv.rgb_to_grayscale, clips, [[3]] * 3)
    solar = each_by_torchvision(tv.solarize, clips, [[0.5]] * 3)
    assert (grayscale_(clips.clone()) - gray).abs().max() < 1e-5
    assert (solarise_(clips.clone()) - solar).abs().max() < 1e-5


def test_motion_alone_is_the_same_before_any_scene() -> None:
    square = torch.zeros(1, 3, 4, 12, 12)
    for frame in range(4):
        square[0, :, frame, 4:8, 2 * frame : 2 * frame + 4] = 0.4
    scene = 0.6 * torch.rand(1, 3, 1, 12, 12)
    found = motion_alone_(square + scene)
    assert torch.allclose(found, motion_alone_(square.clone()), atol=1e-6)
    assert torch.allclose(found.mean(dim=2), torch.tensor(0.5), atol=1e-6)
    naive = torch.stack([frame - square[0].mean(1) + 0.5 for frame in square[0].unbind(1)], 1)
    assert torch.allclose(found[0], naive, atol=1e-6)
    still = motion_alone_(scene.expand(-1, -1, 4, -1, -1).clone())
    assert torch.allclose(still, torch.tensor(0.5), atol=1e-6)


def test_motion_alone_stays_in_range() -> None:
    flash = torch.zeros(1, 3, 4, 2, 2)
    flash[:, :, 0] = 1
    found = motion_alone_(flash)
    assert found[:, :, 0].eq(1).all()
    assert found[:, :, 1:].eq(0.25).all()


@pytest.mark.parametrize(("side", "kernel"), [(112, 11), (48, 5), (20, 3), (9, 3)])
def test_blur_matches_torchvision(side: int, kernel: int) -> None:
    clips = torch.rand(3, 3, 2, side, side + 1)
    sigmas = [0.1, 0.8, 2.0]
    expected = each_by_torchvision(
        tv.gaussian_blur, clips, [[[kernel, kernel], [sigma, sigma]] for sigma in sigmas]
    )
    found = gaussian_blur_(clips.clone(), torch.tensor(sigmas))
    assert (found - expected).abs().max() < 1e-5


def test_blur_keeps_its_precision_under_autocast() -> None:
    clips, sigmas = torch.rand(1, 3, 2, 32, 32), torch.tensor([1.0])
    expected = gaussian_blur_(clips.clone(), sigmas)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = gaussian_blur_(clips.clone(), sigmas)
    assert torch.equal(found, expected)


def test_jitters_run_in_the_drawn_order_on_the_drawn_clips() -> None:
    draws = clip_draws(range(12))
    plan = colour_plan(draws, RandomColour(**(UNCHANGED | {"jitter_probability": 0.6})))
    clips = torch.rand(12, 3, 2, 10, 10)
    expected = clips.clone()
    theirs = [operation for _, operation, _ in JITTERS.values()]
    for row in range(12):
        if draws.jitter[row] < 0.6:
            for kind in draws.jitter_order[row].argsort().tolist():
                frames = expected[row].transpose(0, 1)
                number = plan.strengths[row, kind].item()
                expected[row] = theirs[kind](frames, number).transpose(0, 1)
    assert 0 < plan.jitter.sum() < 12
    assert len({tuple(order) for order in plan.order.tolist()}) > 6
    found = apply_colour_(clips.clone(), plan)
    assert (found - expected).abs().max() < 1e-4
    assert torch.equal(found[~plan.jitter], clips[~plan.jitter])


def test_each_choice_is_made_by_a_number_of_its_own() -> None:
    draws = clip_draws(range(200))
    names = ("jitter", "gray", "blur", "solarise", "motion")
    chances = {f"{name}_probability": 0.2 + 0.1 * k for k, name in enumerate(names)}
    plan = colour_plan(draws, RandomColour(**(UNCHANGED | chances)))
    for name in names:
        assert torch.equal(
            getattr(plan, name), getattr(draws, name) < chances[f"{name}_probability"]
        )
    torch.testing.assert_close(plan.sigma, 0.1 + 1.9 * draws.blur_sigma)


def test_strengths_cover_their_ranges() -> None:
    plan = colour_plan(
        clip_draws(range(3000)), RandomColour(**(UNCHANGED | {"jitter": (0.4, 1.5, 0.0, 0.2)}))
    )
    low, high = plan.strengths.amin(0), plan.strengths.amax(0)
    assert torch.allclose(low, torch.tensor([0.6, 0.0, 1.0, -0.2]), atol=5e-3)
    assert torch.allclose(high, torch.tensor([1.4, 2.5, 1.0, 0.2]), atol=5e-3)
    assert torch.allclose(plan.sigma.mean(), torch.tensor(1.05), atol=0.05)


@pytest.mark.parametrize(
    ("name", "operation"),
    [
        ("gray", grayscale_),
        ("solarise", solarise_),
        ("motion", motion_alone_),
        ("blur", None),
    ],
)
def test_each_step_touches_its_clips_alone(name: str, operation: object) -> None:
    draws = clip_draws(range(20))
    plan = colour_plan(draws, RandomColour(**(UNCHANGED | {f"{name}_probability": 0.5})))
    clips = torch.rand(20, 3, 2, 24, 24)
    chosen = getattr(draws, name) < 0.5
    expected = (
        gaussian_blur_(clips.clone(), plan.sigma) if operation is None else operation(clips.clone())
    )
    found = apply_colour_(clips.clone(), plan)
    assert 0 < chosen.sum() < 20
    assert torch.allclose(found[chosen], expected[chosen], atol=1e-6)
    assert torch.equal(found[~chosen], clips[~chosen])


def test_batch_and_single_clips_agree() -> None:
    everything = RandomColour(
        jitter_probability=0.8,
        gray_probability=0.3,
        blur_probability=0.5,
        solarise_probability=0.3,
        motion_probability=0.3,
    )
    plan = colour_plan(clip_draws(range(16)), everything)
    clips = torch.rand(16, 3, 2, 24, 24)
    together = apply_colour_(clips.clone(), plan)
    alone = clips.clone()
    for row in range(16):
        apply_colour_(alone[row : row + 1], plan.rows(row, row + 1))
    assert torch.allclose(together, alone, atol=1e-6)


# Options


@pytest.mark.parametrize(
    ("options", "option", "value"),
    [
        (RandomResizedCrop, "crop_area", (0.5, 1.2)),
        (RandomResizedCrop, "crop_area", (0.5, 0.2)),
        (RandomResizedCrop, "crop_aspect", (0.0, 2.0)),
        (RandomResizedCrop, "flip", 1.5),
        (RandomColour, "jitter", (0.1, 0.1, 0.1, 0.6)),
        (RandomColour, "jitter", (0.1, 0.1, 0.1)),
        (RandomColour, "jitter", (-0.1, 0.1, 0.1, 0.1)),
        (RandomColour, "jitter_probability", -0.1),
        (RandomColour, "gray_probability", 2.0),
        (RandomColour, "blur_probability", (0.5, 1.5)),
        (RandomColour, "blur_sigma", (0.0, 1.0)),
        (RandomColour, "solarise_probability", float("nan")),
        (RandomColour, "motion_probability", (0.0, 1.5)),
    ],
)
def test_options_out_of_range_are_named(options: type, option: str, value: object) -> None:
    with pytest.raises(UserError, match=rf"^{option} must"):
        options(**{option.removeprefix("crop_"): value})
