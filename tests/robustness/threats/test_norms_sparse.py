"""Budgets that few pixels or few frames spend, and budgets a frame."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vidcsl.errors import UserError
from vidcsl.robustness.threats import L1, L2, BudgetExceeded, FrameSparse

SHAPE = (3, 3, 4, 2, 5)
KINDS = {
    "l1": lambda eps, **more: L1(eps, **more),
    "l21": lambda eps, **more: FrameSparse(eps, **more),
    "l2 a frame": lambda eps, **more: L2(eps, over="frame", **more),
    "l1 a frame": lambda eps, **more: L1(eps, over="frame", **more),
}
EACH = pytest.mark.parametrize("kind", KINDS)


def size(kind: str, delta: Tensor) -> Tensor:
    """The norm, by its definition; a budget a frame as the largest of all frames."""
    frames = delta.double().transpose(1, 2).flatten(2)  # [N, T, ...]
    l1, l2 = frames.abs().sum(2), frames.norm(dim=2)
    return {
        "l1": l1.sum(1),
        "l21": l2.sum(1),
        "l2 a frame": l2.amax(1),
        "l1 a frame": l1.amax(1),
    }[kind]


def noise(seed: int, scale: float = 1.0, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def some_clips(seed: int) -> Tensor:
    return (0.5 + noise(seed + 1, 0.5)).clamp(0, 1)


def generators(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(i) for i in range(count)]


@EACH
@settings(max_examples=25)
@given(
    seed=st.integers(0, 999),
    eps=st.sampled_from([0.0, 1e-3, 0.3, 2.0]),
    scale=st.sampled_from([0.0, 0.05, 3.0]),
    frames=st.sampled_from(["all", "first:2", "random:1", (0, 3)]),
    region=st.sampled_from(["all", "border:0.5", "patch:0.3"]),
)
def test_project_keeps_budget_box_and_mask_and_repeats_itself(
    kind, seed, eps, scale, frames, region
):
    threat, clips = KINDS[kind](eps, frames=frames, region=region), some_clips(seed)
    mask = threat.mask(clips, range(3))
    delta = threat.project(clips, noise(seed, scale), mask)
    assert (size(kind, delta) <= eps * (1 + 1e-5)).all()
    assert ((clips + delta >= -1e-6) & (clips + delta <= 1 + 1e-6)).all()
    assert (delta.masked_select(~mask.expand_as(delta)) == 0).all()
    torch.testing.assert_close(threat.project(clips, delta, mask), delta, rtol=1e-4, atol=1e-6)
    threat.verify(clips, threat.perturb(clips, delta, range(3)), mask)


def test_frame_sparse_projection_is_the_nearest_point_inside_the_box():
    threat, clips = FrameSparse(0.4), torch.full(SHAPE, 0.5)
    delta = noise(3, 0.1)
    delta[:, :, 0] *= 0.1
    found = threat.project(clips, delta, threat.mask(clips, range(3)))
    norms = delta.transpose(1, 2).flatten(2).norm(dim=2)
    for row in range(3):  # nearest: all norms fall by the same amount, some to zero
        low, high = 0.0, 10.0
        for _ in range(60):
            middle = (low + high) / 2
            above = (norms[row] - middle).clamp_min(0).sum() > 0.4
            low, high = (middle, high) if above else (low, middle)
        kept = (norms[row] - high).clamp_min(0) / norms[row]
        expected = delta[row] * kept[None, :, None, None]
        torch.testing.assert_close(found[row], expected, rtol=1e-4, atol=1e-6)
    frames_kept = (found.abs().amax(dim=(1, 3, 4)) > 0).sum(1)
    assert (frames_kept == 3).all()  # sparse: the weakest frame is free of change


@EACH
def test_steepest_step_beats_random_competitors(kind):
    threat, clips, delta = KINDS[kind](5.0), some_clips(5), torch.zeros(SHAPE)
    gradient, everything = noise(6), torch.ones(3, 1, 1, 1, 1, dtype=torch.bool)
    step = threat.steepest_step(clips, delta, gradient, 0.7, everything)
    assert (size(kind, step) <= 0.7 * (1 + 1e-5)).all()
    gained = (step * gradient).flatten(1).sum(1)
    for seed in range(300):
        other = noise(seed, 1.0)
        if seed % 3 == 0:  # sparse ones too
            other = other * (other.abs() > 1.5)
        other = torch.minimum(torch.maximum(other, -clips), 1 - clips)  # the step heeds the box
        scale = 0.7 / size(kind, other).clamp_min(1e-9)
        other = other * scale.clamp(max=1).float().view(-1, 1, 1, 1, 1)
        assert (gained >= (other * gradient).flatten(1).sum(1) - 1e-5).all()


@EACH
def test_zero_gradient_gives_no_step_and_masks_hold(kind):
    threat, clips = KINDS[kind](1.0, frames=(1,)), some_clips(7)
    mask, nothing = threat.mask(clips, range(3)), torch.zeros(SHAPE)
    assert torch.equal(threat.steepest_step(clips, nothing, nothing, 0.5, mask), nothing)
    step = threat.steepest_step(clips, nothing, noise(8), 0.5, mask)
    assert (step[:, :, [0, 2, 3]] == 0).all()
    assert (size(kind, step) > 0.49).all()


@EACH
def test_start_is_allowed_random_and_of_each_clip_alone(kind):
    threat, clips = KINDS[kind](0.6), torch.full(SHAPE, 0.5)
    mask = threat.mask(clips, range(3))
    delta = threat.start(clips, mask, generators(3))
    assert (size(kind, delta) <= 0.6 * (1 + 1e-5)).all()
    assert (size(kind, delta) > 0.05).all()
    alone = threat.start(clips[2:], mask[2:], generators(3)[2:])
    torch.testing.assert_close(alone, delta[2:])
    assert not torch.equal(delta[0], delta[1])


def test_l1_start_is_uniform_in_the_ball():
    threat, clips = L1(0.4), torch.full((2000, 3, 1, 1, 1), 0.5)
    delta = threat.start(clips, threat.mask(clips, range(2000)), generators(2000))
    uniform = ((size("l1", delta) / 0.4) ** 3).sort().values
    distance = (uniform - torch.linspace(0, 1, 2000, dtype=torch.float64)).abs().max()
    assert distance < 1.95 / 2000**0.5  # Kolmogorov-Smirnov, 0.1 %


@EACH
def test_verify_names_what_is_too_much(kind):
    threat, clean = KINDS[kind](0.4), torch.full((2, 3, 4, 2, 2), 0.5)
    mask = threat.mask(clean, range(2))
    fine, much = clean.clone(), clean.clone()
    fine[1, 0, 2, 0, 0] += 0.3999
    much[1, 0, 2, 0, 0] += 0.4002
    threat.verify(clean, fine, mask)
    with pytest.raises(BudgetExceeded, match="exceeds"):
        threat.verify(clean, much, mask)
    spread = clean.clone()
    spread[1, 0, :, 0, 0] += 0.39  # within a budget a frame, not within one of the clip
    if "frame" in kind:
        threat.verify(clean, spread, mask)
    else:
        with pytest.raises(BudgetExceeded):
            threat.verify(clean, spread, mask)


def test_what_has_no_frames_or_a_strange_budget():
    with pytest.raises(UserError, match="not images"):
        FrameSparse(1.0).mask(torch.zeros(1, 3, 4, 4), [0])
    with pytest.raises(UserError, match="over the clip"):
        FrameSparse(1.0, over="frame")
    with pytest.raises(UserError, match="over clip or frame"):
        L2(1.0, over="pixel")


@settings(max_examples=25)
@given(seed=st.integers(0, 999), eps=st.sampled_from([0.02, 0.3, 2.0]))
@pytest.mark.parametrize("kind", [*KINDS, "l2"])
def test_quantised_deltas_are_levels_that_spend_the_budget_and_no_more(kind, seed, eps):
    threat, clips = KINDS.get(kind, L2)(eps), (some_clips(seed) * 255).round() / 255
    delta = threat.project(clips, noise(seed), threat.mask(clips, range(3)))
    found = threat.quantise(clips, delta)
    levels = (found.double() * 255).round()
    torch.testing.assert_close(found * 255, levels.float(), rtol=0, atol=1e-4)
    clean = (clips.double() * 255).round()
    assert (clean + levels >= 0).all()
    assert (clean + levels <= 255).all()
    assert (levels * delta >= 0).all()  # no change against the given one
    spent, given = threat.size(levels), threat.size(255 * delta.double())
    assert (spent <= 255 * eps * (1 + 1e-9)).all()
    assert (spent <= given * (1 + 1e-5)).all()
    # All but less than one more level, where the box lets one more number change.
    free = threat.grouped(((clean + levels > 0) & (clean + levels < 255) & (delta != 0)).float())
    one_more = {"l2": (given.square() - spent.square()).clamp_min(0) / (2 * spent + 1)}
    one_more["l2 a frame"] = one_more["l2"]
    missing = one_more.get(kind, given - spent)
    assert (missing[free.sum(1) == free.shape[1]] < 1 + 1e-3).all()
    alone = threat.quantise(clips[1:2], delta[1:2])
    torch.testing.assert_close(alone, found[1:2])


@pytest.mark.parametrize("eps", [0.03, 0.06, 0.1])
def test_a_small_budget_over_many_pixels_is_spent_on_the_largest_changes(eps):
    """eps / sqrt(D) is far below half a level: rounded one by one, every change would be lost."""
    clips = torch.full((2, 3, 8, 32, 32), 0.5).mul(255).round().div(255)
    delta = L2(eps).project(clips, noise(0, shape=clips.shape), torch.ones(1, 1, 1, 1, 1).bool())
    assert ((delta * 255).abs() < 0.5).float().mean() > 0.97
    found = L2(eps).quantise(clips, delta)
    spent = (found.double() * 255).round().flatten(1).norm(dim=1)
    assert (spent <= 255 * eps).all()
    assert (spent > 0.97 * 255 * eps).all()
    for one, whole in zip(delta.abs(), found, strict=True):
        assert one[whole != 0].min() >= one[whole == 0].max() - 1e-9


def test_a_budget_a_frame_counts_the_frames_that_may_change():
    threat, clips = L2(0.3, over="frame", frames="first:2"), torch.full(SHAPE, 0.5)
    mask = threat.mask(clips, range(3))
    assert threat.dimensions(clips, mask).flatten().tolist() == [3 * 2 * 5] * 3


def test_l1_starts_are_uniform_in_the_ball():
    clips, threat = torch.full((4000, 3, 1, 1, 1), 0.5), L1(0.1)
    generators = [torch.Generator().manual_seed(seed) for seed in range(len(clips))]
    mask = threat.mask(clips, range(len(clips)))
    changes = threat.start(clips, mask, generators).flatten(1) / 0.1
    assert changes.mean(dim=0).tolist() == pytest.approx([0] * 3, abs=0.02)
    for part in (0.3, 0.5, 0.7):  # beyond a face at such a distance lies so much of the ball
        assert (changes.abs() > part).double().mean(dim=0).tolist() == pytest.approx(
            [(1 - part) ** 3] * 3, abs=0.025
        )
