import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vidcsl.errors import UserError
from vidcsl.robustness.threats import L2, BudgetExceeded, Linf

SHAPE = (3, 3, 4, 2, 5)
BOTH = pytest.mark.parametrize("ball", [Linf, L2])
FRAMES = st.sampled_from(["all", "first:2", "random:1", "random:3", [3], [0, 2]])


def generators(count: int, seed: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed + i) for i in range(count)]


def random_clips(seed: int, shape: tuple[int, ...] = SHAPE) -> Tensor:
    # Wider than [0, 1] before the clamp, so that many pixels sit on the border of the box.
    noise = torch.rand(shape, generator=torch.Generator().manual_seed(seed))
    return (1.6 * noise - 0.3).clamp(0, 1)


def random_delta(seed: int, size: float, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return size * torch.randn(shape, generator=torch.Generator().manual_seed(seed + 10_000))


def size_of(ball: type, delta: Tensor) -> Tensor:
    # Measured in double: the squares of a small delta underflow in float32.
    order = math.inf if ball is Linf else 2
    return torch.linalg.vector_norm(delta.double().flatten(1), order, dim=1).to(delta.dtype)


def steepest(threat, gradient: Tensor, step, mask: Tensor) -> Tensor:
    grey = torch.full_like(gradient, 0.5)
    return threat.steepest_step(grey, torch.zeros_like(grey), gradient, step, mask)


@BOTH
@settings(max_examples=40)
@given(
    seed=st.integers(0, 999),
    eps=st.just(0.0) | st.floats(1e-6, 1),
    size=st.just(0.0) | st.floats(1e-3, 5),
    frames=FRAMES,
)
def test_project_keeps_both_budgets_and_the_mask(ball, seed, eps, size, frames):
    threat = ball(eps=eps, frames=frames)
    clips = random_clips(seed)
    mask = threat.mask(clips, range(3))
    delta = threat.project(clips, random_delta(seed, size), mask)
    assert (size_of(ball, delta) <= eps * (1 + 1e-6)).all()
    assert ((clips + delta >= -1e-7) & (clips + delta <= 1 + 1e-7)).all()
    assert (delta.masked_select(~mask.expand_as(delta)) == 0).all()
    torch.testing.assert_close(threat.project(clips, delta, mask), delta, rtol=1e-6, atol=1e-7)
    threat.verify(clips, (clips + delta).clamp(0, 1), mask)


@BOTH
def test_project_leaves_what_is_allowed(ball):
    clips = torch.full(SHAPE, 0.5)
    delta = random_delta(1, 1e-3)
    threat = ball(eps=0.5)
    assert torch.equal(threat.project(clips, delta, threat.mask(clips, range(3))), delta)


def test_linf_projection_is_the_nearest_point():
    threat, grid = Linf(eps=0.3), torch.linspace(-1, 1, 2001)
    clips, delta = random_clips(2), random_delta(2, 0.5)
    projected = threat.project(clips, delta, threat.mask(clips, range(3)))
    for x, d, found in zip(clips.flatten(), delta.flatten(), projected.flatten(), strict=True):
        allowed = grid[(grid.abs() <= 0.3 + 1e-6) & (x + grid >= 0) & (x + grid <= 1)]
        assert (found - d).abs() <= (allowed - d).abs().min() + 1e-3


def test_l2_projection_spends_nothing_on_what_the_box_takes_back():
    clips = torch.ones(SHAPE)
    delta = torch.ones(SHAPE)
    delta[:, :, 0] = -1.0
    threat = L2(eps=0.7)
    projected = threat.project(clips, delta, threat.mask(clips, range(3)))
    torch.testing.assert_close(size_of(L2, projected), torch.full((3,), 0.7))


def test_linf_steepest_step_beats_every_corner():
    gradient = random_delta(4, 1.0, (2, 3, 1, 2, 1))
    step = steepest(Linf(eps=1.0), gradient, 0.25, torch.ones(2, 1, 1, 1, 1, dtype=torch.bool))
    corners = 0.25 * torch.tensor(list(itertools.product([-1.0, 1.0], repeat=6)))
    best = (gradient.flatten(1) @ corners.T).amax(dim=1)
    torch.testing.assert_close((gradient * step).flatten(1).sum(1), best)
    assert step.abs().max() <= 0.25


def test_l2_steepest_step_beats_random_directions():
    gradient = random_delta(5, 1.0, (2, 3, 1, 2, 1))
    step = steepest(L2(eps=1.0), gradient, 0.25, torch.ones(2, 1, 1, 1, 1, dtype=torch.bool))
    torch.testing.assert_close(size_of(L2, step), torch.full((2,), 0.25))
    directions = random_delta(6, 1.0, (5000, 6))
    directions = 0.25 * directions / directions.norm(dim=1, keepdim=True)
    gained = (gradient * step).flatten(1).sum(1)
    assert (gained.unsqueeze(1) >= gradient.flatten(1) @ directions.T).all()
    torch.testing.assert_close(gained, 0.25 * gradient.flatten(1).norm(dim=1))  # Cauchy-Schwarz


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e12, 1e30])
def test_l2_step_keeps_its_size_at_any_gradient_scale(scale):
    gradient = random_delta(7, 1.0) * scale
    step = steepest(L2(eps=1.0), gradient, 0.5, torch.ones(3, 1, 1, 1, 1, dtype=torch.bool))
    torch.testing.assert_close(size_of(L2, step), torch.full((3,), 0.5))


@BOTH
def test_zero_gradient_gives_no_step(ball):
    mask = torch.ones(3, 1, 1, 1, 1, dtype=torch.bool)
    assert torch.equal(steepest(ball(eps=1), torch.zeros(SHAPE), 0.5, mask), torch.zeros(SHAPE))


@BOTH
@pytest.mark.parametrize("frames", ["all", "random:2", [1]])
def test_steepest_step_spends_its_size_on_the_chosen_frames(ball, frames):
    threat = ball(eps=1.0, frames=frames)
    gradient = random_delta(8, 1.0)
    mask = threat.mask(gradient, range(3))
    sizes = torch.tensor([0.1, 0.2, 0.3])
    step = steepest(threat, gradient, sizes.view(3, 1, 1, 1, 1), mask)
    torch.testing.assert_close(size_of(ball, step), sizes)
    assert (step.masked_select(~mask.expand_as(step)) == 0).all()


@BOTH
@pytest.mark.parametrize("shape", [SHAPE, (3, 3, 6, 7)])
def test_start_is_a_wide_draw_of_the_ball_for_each_clip_alone(ball, shape):
    threat = ball(eps=0.2)
    clips = torch.full(shape, 0.5)
    mask = threat.mask(clips, range(3))
    delta = threat.start(clips, mask, generators(3))
    sizes = size_of(ball, delta)
    assert ((sizes > 0.15) & (sizes <= 0.2 + 1e-6)).all()
    assert delta.mean().abs() < 0.05
    alone = threat.start(clips[1:2], mask[1:2], generators(1, seed=1))
    torch.testing.assert_close(alone, delta[1:2], rtol=1e-6, atol=1e-8)
    double = threat.start(clips.double(), mask, generators(3))
    torch.testing.assert_close(double.float(), delta, rtol=1e-5, atol=1e-7)


def test_l2_start_is_uniform_in_the_ball():
    # In 3 dimensions the radius of a uniform draw has the distribution function (r / eps)^3.
    threat, clips = L2(eps=0.4), torch.full((4000, 3, 1, 1, 1), 0.5)
    delta = threat.start(clips, threat.mask(clips, range(4000)), generators(4000))
    uniform = ((size_of(L2, delta) / 0.4) ** 3).sort().values
    distance = (uniform - torch.linspace(0, 1, 4000)).abs().max()
    assert distance < 1.95 / math.sqrt(4000)  # Kolmogorov-Smirnov, 0.1 %


@BOTH
def test_verify_names_each_breach(ball):
    threat = ball(eps=0.1, frames=[0])
    clean = torch.full((2, 3, 2, 2, 2), 0.95)
    mask = threat.mask(clean, range(2))
    threat.verify(clean, clean, mask)

    def changed(value: float, frame: int = 0) -> Tensor:
        clips = clean.clone()
        clips[1, 2, frame, 1, 1] = value
        return clips

    threat.verify(clean, changed(0.8501), mask)
    with pytest.raises(BudgetExceeded, match="exceeds the budget"):
        threat.verify(clean, changed(0.8499), mask)
    with pytest.raises(BudgetExceeded, match=r"leaves \[0, 1\]"):
        threat.verify(clean, changed(1.01), mask)
    with pytest.raises(BudgetExceeded, match=r"leaves \[0, 1\]"):
        threat.verify(clean, changed(math.nan), mask)
    with pytest.raises(BudgetExceeded, match="outside the chosen frames"):
        threat.verify(clean, changed(0.951, frame=1), mask)


def test_l2_budget_is_that_of_the_clip_not_of_a_frame():
    threat, clean = L2(eps=0.1), torch.full((1, 3, 4, 2, 2), 0.5)
    adversarial = clean.clone()
    adversarial[0, 0, :, 0, 0] += 0.06  # four frames of norm 0.06 each: 0.12 in all
    with pytest.raises(BudgetExceeded):
        threat.verify(clean, adversarial, threat.mask(clean, [0]))


def test_linf_eps_in_units_of_255_is_refused():
    with pytest.raises(UserError, match="8/255"):
        Linf(eps=8)
    assert L2(eps=8).eps == 8


@pytest.mark.parametrize("levels", range(1, 17))
def test_a_quantised_linf_budget_of_whole_levels_is_used_up(levels):
    delta = torch.tensor([1.0, -1.0, 0.2]).view(1, 3, 1, 1, 1) * levels / 255
    grey = torch.full_like(delta, 128 / 255)
    found = Linf(levels / 255).quantise(grey, delta).flatten() * 255
    torch.testing.assert_close(found[:2], torch.tensor([1.0, -1.0]) * levels)


@pytest.mark.parametrize("frames", ["all", "first:1"])
def test_starts_fill_the_ball_of_the_frames_that_may_change(frames):
    clips, threat = torch.full((4000, 3, 4, 1, 1), 0.5), L2(0.1, frames=frames)
    seeds = range(len(clips))
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    norms = threat.size(threat.start(clips, threat.mask(clips, seeds), generators)) / 0.1
    dimensions = 12 if frames == "all" else 3
    for radius in (0.5, 0.8, 0.95):
        assert float((norms < radius).float().mean()) == pytest.approx(
            radius**dimensions, abs=0.025
        )
