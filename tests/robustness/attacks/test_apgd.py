"""APGD as the paper describes it."""

from dataclasses import replace

import pytest
import torch

from tests.robustness.attacks.models import numbers, problem_of
from vidcsl.robustness.attacks import APGD
from vidcsl.robustness.attacks.apgd import checkpoints
from vidcsl.robustness.threats import L2, Linf


def test_apgd_checks_its_progress_when_the_paper_does():
    assert checkpoints(100) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert checkpoints(20) == [5, 9, 12, 14, 16, 18, 19]  # fractions of 20, rounded up


def test_apgd_halves_the_step_where_progress_stalls_and_goes_back_to_the_best():
    """Row 0 rises at each step, row 1 falls at each, row 2 rises at half of them, row 3 always
    but at the second, which loses more than is won back."""
    problem, solver = problem_of(Linf(0.05)), APGD(steps=100)
    delta = problem.zero()
    state = solver.begin(problem, delta)
    torch.testing.assert_close(state["size"], torch.full((6,), 0.1, dtype=torch.float64))
    generator = torch.Generator().manual_seed(0)
    deltas, gradients = [], []
    for step in range(23):
        gradient = torch.randn(delta.shape, generator=generator, dtype=torch.float64)
        goals = [float(step), -float(step), float(step % 2), float(step or 100), 0.0, 0.0]
        deltas.append(delta)
        gradients.append(gradient)
        delta = solver.advance(problem, step, delta, numbers(goals), gradient, state)
        if step == 21:
            assert (state["size"] == 0.1).all()
    assert state["size"].tolist() == pytest.approx([0.1, 0.05, 0.05, 0.1, 0.05, 0.05])
    best = state["best"]
    torch.testing.assert_close(best[0], deltas[22][0])
    torch.testing.assert_close(best[1], deltas[0][1])
    torch.testing.assert_close(state["previous"][1], deltas[0][1])  # where row 1 begins again
    given = (problem.clips, deltas[0], gradients[0])
    ascent = problem.threat.steepest_step(*given, 0.05, problem.mask)
    onward = problem.project(deltas[0] + ascent) - deltas[0]
    mixed = problem.project(deltas[0] + 0.75 * onward + 0.25 * (deltas[0] - deltas[21]))
    torch.testing.assert_close(delta[1], mixed[1])


def test_apgd_mixes_its_step_with_the_last_one():
    problem, solver = problem_of(L2(0.2)), APGD(steps=100)
    problem = replace(problem, clips=0.3 + 0.4 * problem.clips)
    first = problem.zero()
    state = solver.begin(problem, first)
    generator = torch.Generator().manual_seed(0)
    gradients = torch.randn(2, *first.shape, dtype=torch.float64, generator=generator)
    state["size"] = torch.full((6,), 0.05, dtype=torch.float64)
    second = solver.advance(problem, 0, first, numbers([0.0] * 6), gradients[0], state)
    third = solver.advance(problem, 1, second, numbers([1.0] * 6), gradients[1], state)
    unit = gradients[1] / gradients[1].flatten(1).norm(dim=1).view(-1, 1, 1, 1, 1)
    # The start is at zero and the box is wide, so that nothing but the mixture decides.
    inside = ((problem.clips > 0.2) & (problem.clips < 0.8)).all(dim=0)
    expected = second + 0.75 * 0.05 * unit + 0.25 * (second - first)
    torch.testing.assert_close(third[:, inside], expected[:, inside])


def test_apgd_halves_where_fewer_than_its_ratio_of_the_steps_raised_the_goal():
    state = {
        "raised": torch.tensor([11.0, 12.0, 13.0]),  # of 16, of which three quarters are 12
        "size": torch.ones(3),
        "halved": torch.zeros(3, dtype=torch.bool),
        "best_goal": torch.ones(3),
        "best_at_checkpoint": torch.zeros(3),
    }
    assert APGD(steps=100).halve(state, 16).tolist() == [True, False, False]
    assert state["size"].tolist() == [0.5, 1, 1]
    assert state["raised"].tolist() == [0, 0, 0]
    # The best goal has not risen since: all but the one halved just now begin again.
    state["raised"] = torch.full((3,), 16.0)
    assert APGD(steps=100).halve(state, 16).tolist() == [False, True, True]
