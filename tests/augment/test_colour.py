from itertools import islice
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from vidcsl.augment import transforms as colour
from vidcsl.augment.transforms import apply_colour_, clip_draws, colour_plan

VIDEOS = Path(__file__).parents[3] / "shared" / "data" / "ucf101_10_mini"
JITTERS = {
    "brightness": (colour.brightness_, tv.adjust_brightness, 1e-5),
    "contrast": (colour.contrast_, tv.adjust_contrast, 1e-5),
    "saturation": (colour.saturation_, tv.adjust_saturation, 1e-5),
    "hue": (colour.hue_, tv.adjust_hue, 1e-4),
}
NOTHING = {
    "jitter": (0.8, 0.8, 0.8, 0.2),
    "jitter_probability": 0.0,
    "gray_probability": 0.0,
    "blur_probability": 0.0,
    "blur_sigma": (0.1, 2.0),
    "solarise_probability": 0.0,
    "motion_probability": 0.0,
}


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
    assert (colour.hue_(clip.clone(), torch.tensor([shift])) - expected).abs().max() < 1e-4


@pytest.mark.parametrize("source", [noise, real])
def test_grayscale_and_solarise_match_torchvision(source: object) -> None:
    clips = source()
    gray = each_by_torchvision(tv.rgb_to_grayscale, clips, [[3]] * 3)
    solar = each_by_torchvision(tv.solarize, clips, [[0.5]] * 3)
    assert (colour.grayscale_(clips.clone()) - gray).abs().max() < 1e-5
    assert (colour.solarise_(clips.clone()) - solar).abs().max() < 1e-5


def test_motion_alone_is_the_same_before_any_scene() -> None:
    square = torch.zeros(1, 3, 4, 12, 12)
    for frame in range(4):
        square[0, :, frame, 4:8, 2 * frame : 2 * frame + 4] = 0.4
    scene = 0.6 * torch.rand(1, 3, 1, 12, 12)
    found = colour.motion_alone_(square + scene)
    assert torch.allclose(found, colour.motion_alone_(square.clone()), atol=1e-6)
    assert torch.allclose(found.mean(dim=2), torch.tensor(0.5), atol=1e-6)
    naive = torch.stack([frame - square[0].mean(1) + 0.5 for frame in square[0].unbind(1)], 1)
    assert torch.allclose(found[0], naive, atol=1e-6)
    still = colour.motion_alone_(scene.expand(-1, -1, 4, -1, -1).clone())
    assert torch.allclose(still, torch.tensor(0.5), atol=1e-6)


def test_motion_alone_stays_in_range() -> None:
    flash = torch.zeros(1, 3, 4, 2, 2)
    flash[:, :, 0] = 1
    found = colour.motion_alone_(flash)
    assert found[:, :, 0].eq(1).all()
    assert found[:, :, 1:].eq(0.25).all()


@pytest.mark.parametrize(("side", "kernel"), [(112, 11), (48, 5), (20, 3), (9, 3)])
def test_blur_matches_torchvision(side: int, kernel: int) -> None:
    clips = torch.rand(3, 3, 2, side, side + 1)
    sigmas = [0.1, 0.8, 2.0]
    expected = each_by_torchvision(
        tv.gaussian_blur, clips, [[[kernel, kernel], [sigma, sigma]] for sigma in sigmas]
    )
    found = colour.gaussian_blur_(clips.clone(), torch.tensor(sigmas))
    assert (found - expected).abs().max() < 1e-5


def test_blur_keeps_its_precision_under_autocast() -> None:
    clips, sigmas = torch.rand(1, 3, 2, 32, 32), torch.tensor([1.0])
    expected = colour.gaussian_blur_(clips.clone(), sigmas)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = colour.gaussian_blur_(clips.clone(), sigmas)
    assert torch.equal(found, expected)


def test_jitters_run_in_the_drawn_order_on_the_drawn_clips() -> None:
    draws = clip_draws(range(12))
    plan = colour_plan(draws, **(NOTHING | {"jitter_probability": 0.6}))
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
    plan = colour_plan(draws, **(NOTHING | chances))
    for name in names:
        assert torch.equal(
            getattr(plan, name), getattr(draws, name) < chances[f"{name}_probability"]
        )
    torch.testing.assert_close(plan.sigma, 0.1 + 1.9 * draws.blur_sigma)


def test_strengths_cover_their_ranges() -> None:
    plan = colour_plan(clip_draws(range(3000)), **(NOTHING | {"jitter": (0.4, 1.5, 0.0, 0.2)}))
    low, high = plan.strengths.amin(0), plan.strengths.amax(0)
    assert torch.allclose(low, torch.tensor([0.6, 0.0, 1.0, -0.2]), atol=5e-3)
    assert torch.allclose(high, torch.tensor([1.4, 2.5, 1.0, 0.2]), atol=5e-3)
    assert torch.allclose(plan.sigma.mean(), torch.tensor(1.05), atol=0.05)


@pytest.mark.parametrize(
    ("name", "operation"),
    [
        ("gray", colour.grayscale_),
        ("solarise", colour.solarise_),
        ("motion", colour.motion_alone_),
        ("blur", None),
    ],
)
def test_each_step_touches_its_clips_alone(name: str, operation: object) -> None:
    draws = clip_draws(range(20))
    plan = colour_plan(draws, **(NOTHING | {f"{name}_probability": 0.5}))
    clips = torch.rand(20, 3, 2, 24, 24)
    chosen = getattr(draws, name) < 0.5
    expected = (
        colour.gaussian_blur_(clips.clone(), plan.sigma)
        if operation is None
        else operation(clips.clone())
    )
    found = apply_colour_(clips.clone(), plan)
    assert 0 < chosen.sum() < 20
    assert torch.allclose(found[chosen], expected[chosen], atol=1e-6)
    assert torch.equal(found[~chosen], clips[~chosen])


def test_batch_and_single_clips_agree() -> None:
    everything = NOTHING | {
        "jitter_probability": 0.8,
        "gray_probability": 0.3,
        "blur_probability": 0.5,
        "solarise_probability": 0.3,
        "motion_probability": 0.3,
    }
    plan = colour_plan(clip_draws(range(16)), **everything)
    clips = torch.rand(16, 3, 2, 24, 24)
    together = apply_colour_(clips.clone(), plan)
    alone = clips.clone()
    for row in range(16):
        apply_colour_(alone[row : row + 1], plan.rows(row, row + 1))
    assert torch.allclose(together, alone, atol=1e-6)
