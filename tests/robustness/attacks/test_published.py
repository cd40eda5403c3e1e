"""What the papers say of their attacks, by their own numbers."""

from dataclasses import replace

import pytest
import torch

from tests.robustness.attacks.models import predict, random_clips, sharp
from vidcsl.robustness.attacks import APGD, GOALS, Adam, MomentumPGD, Problem, Square, attack
from vidcsl.robustness.attacks.adam import unevenness
from vidcsl.robustness.attacks.apgd import checkpoints
from vidcsl.robustness.attacks.problem import Verdict
from vidcsl.robustness.attacks.square import _block, _reach, share_at
from vidcsl.robustness.threats import L2, Flicker, Linf, Threat


def problem_of(threat: Threat) -> Problem:
    model, clips = sharp(), random_clips()
    labels = predict(model, clips)
    with torch.no_grad():
        return Problem.of(model, threat, GOALS["cross_entropy"], clips, labels, seeds=range(6))


def test_apgd_looks_at_its_progress_when_the_paper_does():
    assert checkpoints(100) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert checkpoints(20) == [5, 9, 12, 14, 16, 18, 19]  # shares of 20, rounded up


def verdicts(goals: list[float]) -> Verdict:
    return Verdict(torch.tensor(goals, dtype=torch.float64), torch.zeros(6, dtype=torch.bool))


def test_apgd_halves_the_step_where_progress_stalls_and_goes_back_to_the_best():
    """Row 0 rises at each step, row 1 falls at each, row 2 rises at half of them."""
    problem, solver = problem_of(Linf(0.05)), APGD(steps=100)
    delta = problem.zero()
    state = solver.begin(problem, delta)
    torch.testing.assert_close(state["size"], torch.full((6,), 0.1, dtype=torch.float64))
    generator = torch.Generator().manual_seed(0)
    deltas = []
    for step in range(23):
        gradient = torch.randn(delta.shape, generator=generator, dtype=torch.float64)
        goals = [float(step), -float(step), float(step % 2), 0.0, 0.0, 0.0]
        deltas.append(delta)
        delta = solver.advance(problem, step, delta, (verdicts(goals), gradient), state)
        if step == 21:
            assert (state["size"] == 0.1).all()
    assert state["size"].tolist() == pytest.approx([0.1, 0.05, 0.05, 0.05, 0.05, 0.05])
    best = state["best"]
    torch.testing.assert_close(best[0], deltas[22][0])
    torch.testing.assert_close(best[1], deltas[0][1])
    torch.testing.assert_close(state["previous"][1], deltas[0][1])  # where row 1 begins again


def test_apgd_mixes_its_step_with_the_last_one():
    problem, solver = problem_of(L2(0.2)), APGD(steps=100)
    first = problem.zero()
    state = solver.begin(problem, first)
    generator = torch.Generator().manual_seed(0)
    gradients = torch.randn(2, *first.shape, dtype=torch.float64, generator=generator)
    state["size"] = torch.full((6,), 0.05, dtype=torch.float64)
    second = solver.advance(problem, 0, first, (verdicts([0.0] * 6), gradients[0]), state)
    third = solver.advance(problem, 1, second, (verdicts([1.0] * 6), gradients[1]), state)
    unit = gradients[1] / gradients[1].flatten(1).norm(dim=1).view(-1, 1, 1, 1, 1)
    # The start is at zero and the box is wide, so that nothing but the mixture decides.
    inside = ((problem.clips > 0.2) & (problem.clips < 0.8)).all(dim=0)
    expected = second + 0.75 * 0.05 * unit + 0.25 * (second - first)
    torch.testing.assert_close(third[:, inside], expected[:, inside])


def test_mifgsm_divides_by_the_mean_over_all_of_a_clip():
    problem, solver = problem_of(Linf(0.05)), MomentumPGD(steps=10)
    delta = problem.zero()
    state = solver.begin(problem, delta)
    gradients = torch.randn(2, *delta.shape, dtype=torch.float64)
    gradients[0] *= 100  # only by the normalisation do both count alike
    momentum = torch.zeros_like(delta)
    for gradient in gradients:
        solver.advance(problem, 0, delta, (verdicts([0.0] * 6), gradient), state)
        for row in range(6):
            momentum[row] = momentum[row] + gradient[row] / gradient[row].abs().mean()
    torch.testing.assert_close(state["momentum"], momentum)
    assert solver.size_of_step(0.05) == pytest.approx(0.005)


def test_square_halves_its_share_when_the_paper_does():
    shares = [share_at(query, 10_000, 0.8) for query in (0, 10, 11, 51, 201, 501, 1001, 2001, 8001)]
    halvings = [0, 0, 1, 2, 3, 4, 5, 6, 9]
    assert shares == [0.8 / 2**n for n in halvings]
    assert share_at(500, 1000, 0.8) == share_at(5000, 10_000, 0.8)


@pytest.mark.parametrize("share", [0.8, 0.1, 0.01])
def test_square_blocks_are_blocks_of_about_that_share_within_the_mask(share):
    problem = problem_of(Linf(0.1, region="patch:0.4"))
    clips = torch.rand(300, 3, 6, 40, 40)
    with torch.no_grad():
        mask = problem.threat.mask(clips, range(300))
    problem = replace(problem, clips=clips, mask=mask)
    numbers = torch.rand(300, 4, generator=torch.Generator().manual_seed(0))
    blocks = _block(problem, clips, share, numbers, _reach(problem, clips))
    assert not (blocks & ~mask).any()
    shares = blocks.flatten(1).sum(1) / mask.expand_as(blocks).flatten(1).sum(1)
    assert float(shares.mean()) == pytest.approx(share, rel=0.35)
    for block in blocks[:20, 0]:
        along = [block.any(2).any(1), block.any(2).any(0), block.any(1).any(0)]
        assert int(block.sum()) == int(torch.stack([a.sum() for a in along]).prod())


def test_square_asks_no_more_than_its_queries():
    model, clips = sharp(), random_clips()
    rows: list[int] = []
    model.register_forward_hook(lambda _, inputs, __: rows.append(len(inputs[0])))
    labels = predict(model, clips)
    rows.clear()
    solver = Square(queries=15, stop_when_fooled=False)
    attack(model, clips, labels, threat=Linf(0.05), goal="margin", solver=solver)
    assert sum(rows) == 6 * (15 + 1)  # and one look at the clean clips


def test_flicker_regulariser_by_its_formula():
    delta = torch.randn(2, 3, 5, 1, 1, generator=torch.Generator().manual_seed(0))
    for row, value in zip(delta, unevenness(delta), strict=True):
        d = row[:, :, 0, 0]
        first, second = d[:, 1:] - d[:, :-1], d[:, 2:] - 2 * d[:, 1:-1] + d[:, :-2]
        expected = (d**2).mean() + (first**2).mean() + (second**2).mean()
        torch.testing.assert_close(value, expected)


def test_smoothness_makes_flicker_smoother():
    model, clips = sharp(), random_clips()
    labels = predict(model, clips)
    found = []
    for smoothness in (0.0, 1000.0):
        solver = Adam(steps=30, smoothness=smoothness, random_start=False, stop_when_fooled=False)
        flicker = Flicker(0.2)
        adversarial = attack(model, clips, labels, threat=flicker, goal="hinge", solver=solver)
        delta = (adversarial - clips).mean(dim=(3, 4), keepdim=True)
        found.append(unevenness(delta).mean())
    assert found[1] < 0.9 * found[0]
