"""Which frames and which pixels may change."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vidcsl.errors import UserError
from vidcsl.robustness.threats import L2, Linf, choose_frames
from vidcsl.robustness.threats.masks import choose_region
from vidcsl.seeding import torch_generator


class Weighted:
    """A goal that is linear in the clips: their gradient is the same everywhere."""

    def __init__(self, weights: Tensor) -> None:
        self.weights = weights

    def goal_at(self, clips: Tensor) -> Tensor:
        return (clips * self.weights).flatten(1).sum(1)

    def gradient_at(self, clips: Tensor) -> Tensor:
        return self.weights.expand_as(clips)


def frames_of(mask: Tensor) -> list[list[int]]:
    return [row.nonzero()[:, 0].tolist() for row in mask[:, 0, :, 0, 0]]


def test_salient_and_searched_frames_are_those_that_count():
    weights = torch.zeros(2, 3, 5, 4, 4)
    weights[0, :, 1], weights[0, :, 3], weights[1, :, 4], weights[1, :, 0] = 1.0, -2.0, 3.0, 2.0
    clips = torch.full((2, 3, 5, 4, 4), 0.5)
    for rule in ("saliency", "greedy"):
        for threat in (Linf(0.1, frames=f"{rule}:1"), L2(0.5, frames=f"{rule}:1")):
            assert frames_of(threat.mask(clips, [0, 1], Weighted(weights))) == [[3], [4]]
        both = Linf(0.1, frames=f"{rule}:2").mask(clips, [0, 1], Weighted(weights))
        assert frames_of(both) == [[1, 3], [0, 4]]


class Bent:
    """A goal whose gradient turns as clips move: a step too far in one more frame may lower it."""

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.pairs = torch.randn(6, 6, generator=generator) - 4 * torch.eye(6)
        self.offset = torch.rand(6, generator=generator)

    def goal_at(self, clips: Tensor) -> Tensor:
        means = clips.mean(dim=(1, 3, 4)) - self.offset
        return ((means @ self.pairs) * means).sum(dim=1)

    def gradient_at(self, clips: Tensor) -> Tensor:
        clips = clips.detach().requires_grad_()
        return torch.autograd.grad(self.goal_at(clips).sum(), clips)[0]


def test_the_greedy_search_against_a_loop():
    for seed in range(20):
        probe, clip = Bent(seed), torch.full((1, 3, 6, 2, 2), 0.5)
        chosen: list[int] = []
        moved = clip
        for _ in range(3):
            gradient = probe.gradient_at(moved)
            goals = {}
            for frame in set(range(6)) - set(chosen):
                trial = clip.clone()
                for each in (*chosen, frame):
                    trial[:, :, each] += 0.3 * gradient[:, :, each].sign()
                goals[frame] = float(probe.goal_at(trial))
            chosen.append(max(goals, key=lambda frame, goals=goals: goals[frame]))
            moved = clip.clone()
            for each in chosen:
                moved[:, :, each] += 0.3 * gradient[:, :, each].sign()
        mask = Linf(0.3, frames="greedy:3").mask(clip, [0], probe)
        assert frames_of(mask) == [sorted(chosen)]


def test_search_sees_what_saliency_cannot():
    """A frame with the larger gradient, but white already: nothing can be added there."""
    weights = torch.zeros(1, 3, 2, 4, 4)
    weights[:, :, 0], weights[:, :, 1] = 2.0, 1.0
    clips = torch.full((1, 3, 2, 4, 4), 0.5)
    clips[:, :, 0] = 1.0
    saliency, greedy = (Linf(0.2, frames=f"{rule}:1") for rule in ("saliency", "greedy"))
    assert frames_of(saliency.mask(clips, [0], Weighted(weights))) == [[0]]
    assert frames_of(greedy.mask(clips, [0], Weighted(weights))) == [[1]]


def test_a_search_needs_a_model_and_enough_frames():
    clips = torch.rand(1, 3, 2, 4, 4)
    with pytest.raises(UserError, match="chosen by a model"):
        Linf(0.1, frames="saliency:1").mask(clips, [0])
    with pytest.raises(UserError, match="2 frames"):
        Linf(0.1, frames="greedy:3").mask(clips, [0], Weighted(clips))


@settings(max_examples=40)
@given(k=st.integers(1, 9), extra=st.integers(0, 9), seeds=st.lists(st.integers(0, 2**62)))
def test_choose_frames_counts(k, extra, seeds):
    for rule in ("first", "random"):
        chosen = choose_frames(f"{rule}:{k}", k + extra, seeds)
        assert chosen.shape == (len(seeds), k + extra)
        assert (chosen.sum(dim=1) == k).all()
    assert choose_frames(f"first:{k}", k + extra, seeds)[:, :k].all()
    assert choose_frames("all", k, seeds).all()


def test_random_frames_depend_on_the_seed_alone_and_reach_every_frame():
    chosen = choose_frames("random:2", 8, range(200))
    assert torch.equal(chosen[[5, 3]], choose_frames("random:2", 8, [5, 3]))
    ratios = chosen.float().mean(dim=0)
    assert ((ratios > 0.12) & (ratios < 0.4)).all()  # 0.25 each, within about 4 deviations


def test_listed_frames_in_any_order():
    expected = [[False, True, False, True]] * 2
    assert choose_frames([3, 1, 1], 4, [7, 8]).tolist() == expected


@pytest.mark.parametrize(
    "frames", ["some", "first:0", "first:-1", "random", "random:2.5", [], [-1]]
)
def test_unknown_frames_are_refused_at_once(frames):
    with pytest.raises(UserError, match="frames"):
        Linf(eps=0.1, frames=frames)


@pytest.mark.parametrize("frames", ["first:5", "random:5", [0, 4]])
def test_frames_beyond_the_clip_are_refused(frames):
    with pytest.raises(UserError, match="4 frames"):
        choose_frames(frames, 4, [0])


def test_images_have_no_frames_to_choose():
    images = torch.rand(2, 3, 4, 4)
    assert Linf(eps=0.1).mask(images, range(2)).expand_as(images).all()
    with pytest.raises(UserError, match="not images"):
        Linf(eps=0.1, frames="first:1").mask(images, range(2))


@pytest.mark.parametrize("name", ["patch", "moving_patch", "border"])
@pytest.mark.parametrize("ratio", [0.1, 0.2, 0.5])
def test_regions_have_the_area_that_is_requested(name, ratio):
    masks = choose_region(f"{name}:{ratio}", (6, 48, 64), range(5))
    assert masks.shape == (5, 1, 6, 48, 64)
    ratios = masks.float().mean(dim=(1, 3, 4))  # of each frame
    assert (abs(ratios - ratio) < 0.04).all()
    again = choose_region(f"{name}:{ratio}", (6, 48, 64), [3])
    assert torch.equal(again[0], masks[3])


def test_a_patch_is_one_square_a_moving_one_moves_and_a_border_surrounds():
    patch = choose_region("patch:0.1", (6, 40, 40), range(8))[:, 0]
    assert torch.equal(patch, patch[:, :1].expand_as(patch))
    places = {tuple(frame.nonzero()[0].tolist()) for frame in patch[:, 0]}
    assert len(places) > 4
    for frame in patch[:, 0]:
        rows, columns = frame.any(1), frame.any(0)
        assert rows.sum() == columns.sum() == 13  # sqrt(0.1 * 1600) = 12.6
        assert torch.equal(frame, rows[:, None] & columns)
    moving = choose_region("moving_patch:0.1", (6, 40, 40), range(8))[:, 0]
    assert (moving[:, 0] != moving[:, -1]).flatten(1).any(1).all()
    starts = torch.stack([torch.stack([f.nonzero()[0] for f in clip]) for clip in moving])
    assert (starts.diff(dim=1).diff(dim=1).abs() <= 2).all()  # evenly, but for rounding
    border = choose_region("border:0.2", (2, 40, 40), [0])[0, 0, 0]
    assert border[0].all()
    assert border[:, 0].all()
    assert border[-1].all()
    assert not border[20, 20]


def test_regions_of_images():
    images = torch.rand(3, 3, 20, 20)
    mask = Linf(0.5, region="patch:0.25").mask(images, range(3))
    assert mask.shape == (3, 1, 20, 20)
    assert (mask.sum(dim=(1, 2, 3)) == 100).all()


@pytest.mark.parametrize("region", ["patch", "patch:0", "patch:1", "patch:2", "hole:0.1", ""])
def test_unknown_regions_are_refused(region):
    with pytest.raises(UserError, match="region"):
        Linf(0.1, region=region)


def test_a_moving_patch_glides_from_one_place_to_another():
    for seed in range(10):
        mask = choose_region("moving_patch:0.25", (5, 12, 12), [seed])[0, 0]
        begin, end = torch.rand(2, 2, generator=torch_generator(seed, "attacked region"))
        for frame, image in enumerate(mask):
            place = begin + frame / 4 * (end - begin)
            corner = (place * (12 - 6)).round().long().tolist()
            assert image.nonzero()[0].tolist() == corner
            assert int(image.sum()) == 36
