"""FAB as the paper describes it."""

from dataclasses import replace

import pytest
import torch

from tests.robustness.attacks.models import (
    Linear,
    direction,
    predict,
    problem_of,
    random_clips,
    seeded,
)
from vidcsl.robustness.attacks import FAB, attack
from vidcsl.robustness.attacks.fab import nearest_l2, step_to_boundary
from vidcsl.robustness.attacks.goals import margin
from vidcsl.robustness.threats import L1, L2, Linf


def test_fab_steps_to_the_plane_overshoots_and_draws_to_the_clean_clip():
    """In L2, in the middle of the box: planes and their nearest points are arithmetic."""
    problem = problem_of(L2(0.5))
    problem = replace(problem, clips=torch.full_like(problem.clips, 0.5))
    generator = torch.Generator().manual_seed(0)
    shape = problem.clips.shape
    delta, gradient = (
        scale * torch.randn(shape, generator=generator, dtype=torch.float64)
        for scale in (0.01, 1.0)
    )
    goal = torch.tensor([-0.5, -2.0, -0.01, 0.5, 2.0, 0.0], dtype=torch.float64)
    across = (goal > 0).view(-1, 1, 1, 1, 1)
    found = step_to_boundary(problem, delta, goal, gradient, across)
    for row in range(6):
        normal, point = gradient[row], delta[row]
        seen_at = point / 0.9 if goal[row] > 0 else point  # it has been drawn back since
        level = goal[row] - (normal * seen_at).sum()
        along = normal / normal.square().sum()
        here = -(level + (normal * point).sum()) * along
        clean = -level * along
        bias = min(float(here.norm() / (here.norm() + clean.norm())), 0.1)
        wanted = (1 - bias) * (point + 1.05 * here) + bias * 1.05 * clean
        torch.testing.assert_close(found[row], wanted, atol=1e-6, rtol=1e-5)


def test_fab_bears_the_gradients_of_a_confident_model():
    generator = torch.Generator().manual_seed(0)
    weights, room = torch.rand(2, 3, 20, generator=generator).unbind(0)
    gain = torch.tensor([0.1, 1.0, 2.0])
    tiny = nearest_l2(1e-30 * weights, room, 1e-30 * gain)
    torch.testing.assert_close(tiny, nearest_l2(weights, room, gain))


def distance(kind: type, weights: torch.Tensor, clip: torch.Tensor, gain: float) -> float:
    """The least budget with which a linear margin rises by `gain` within the box."""
    room = torch.where(weights > 0, 1 - clip, clip)
    if kind is L1:  # the pixels with the largest weights go all the way, one after the other
        spent = 0.0
        for pixel in weights.abs().argsort(descending=True):
            whole = float(weights[pixel].abs() * room[pixel])
            if whole >= gain:
                return spent + gain / float(weights[pixel].abs())
            gain, spent = gain - whole, spent + float(room[pixel])
    along = weights.abs() if kind is L2 else torch.ones_like(room)
    low, high = 0.0, 1e4
    for _ in range(200):
        middle = (low + high) / 2
        size = torch.minimum(middle * along, room)
        low, high = (low, middle) if (size * weights.abs()).sum() >= gain else (middle, high)
    size = torch.minimum(high * along, room)
    return float(size.norm() if kind is L2 else size.max())


@pytest.mark.parametrize("kind", [Linf, L2, L1])
def test_fab_finds_the_nearest_point_across_a_plane(kind):
    """A budget just above the distance suffices, one just below does not."""
    model, clips = seeded(Linear, 54, 2), random_clips(5, (3, 2, 3, 3))
    labels = predict(model, clips)
    with torch.no_grad():
        gains = -margin(model(clips), labels)
    for row in range(5):
        one = slice(row, row + 1)
        weights = direction(model, labels[row])
        least = distance(kind, weights, clips[row].flatten(), float(gains[row]))
        for factor, expected in ((1.02, True), (0.98, False)):
            options = {"goal": "margin", "solver": FAB(steps=30)}
            threat = kind(least * factor)
            found = attack(model, clips[one], labels[one], threat=threat, **options)
            assert bool(predict(model, found) != labels[one]) == expected, (row, factor)
