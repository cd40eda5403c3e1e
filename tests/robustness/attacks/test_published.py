"""What the papers say of their attacks, by their own numbers."""

from dataclasses import replace

import pytest
import torch

from tests.robustness.attacks.models import predict, random_clips, sharp
from vidcsl.robustness.attacks import APGD, GOALS, Adam, MomentumPGD, Problem, Square, attack
from vidcsl.robustness.attacks.adam import unevenness
from vidcsl.robustness.attacks.apgd import checkpoints
from vidcsl.robustness.attacks.fab import nearest_l2, step_to_boundary
from vidcsl.robustness.attacks.square import move_budget, random_block, ratio_at, reach_of
from vidcsl.robustness.threats import L2, Flicker, Linf, Threat


def problem_of(threat: Threat) -> Problem:
    model, clips = sharp(), random_clips()
    labels = predict(model, clips)
    with torch.no_grad():
        return Problem.of(model, threat, GOALS["cross_entropy"], clips, labels, seeds=range(6))


def test_apgd_checks_its_progress_when_the_paper_does():
    assert checkpoints(100) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert checkpoints(20) == [5, 9, 12, 14, 16, 18, 19]  # fractions of 20, rounded up


def numbers(goals: list[float]) -> torch.Tensor:
    return torch.tensor(goals, dtype=torch.float64)


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


def test_mifgsm_divides_by_the_mean_over_all_of_a_clip():
    problem, solver = problem_of(Linf(0.05)), MomentumPGD(steps=10)
    delta = problem.zero()
    state = solver.begin(problem, delta)
    gradients = torch.randn(2, *delta.shape, dtype=torch.float64)
    gradients[0] *= 100  # only by the normalisation do both count alike
    momentum = torch.zeros_like(delta)
    for gradient in gradients:
        solver.advance(problem, 0, delta, numbers([0.0] * 6), gradient, state)
        for row in range(6):
            momentum[row] = momentum[row] + gradient[row] / gradient[row].abs().mean()
    torch.testing.assert_close(state["momentum"], momentum)
    assert solver.size_of_step(0.05) == pytest.approx(0.005)


def test_mifgsm_forgets_by_its_decay():
    problem, solver = problem_of(Linf(0.05)), MomentumPGD(steps=10, decay=0.5)
    delta = problem.zero()
    state, gradient = solver.begin(problem, delta), torch.full_like(delta, -3.0)
    for wanted in (-1.0, -1.5, -1.75):
        solver.advance(problem, 0, delta, numbers([0.0] * 6), gradient, state)
        torch.testing.assert_close(state["momentum"], torch.full_like(delta, wanted))


def test_square_blocks_reach_every_edge():
    problem = problem_of(Linf(0.1))
    clips = torch.rand(300, 3, 3, 6, 6)
    mask = torch.ones(300, 1, 3, 6, 6, dtype=torch.bool)
    problem = replace(problem, clips=clips, mask=mask)
    draws = torch.rand(300, 4, generator=torch.Generator().manual_seed(0))
    blocks = random_block(problem, clips, 0.1, draws, reach_of(problem))
    blocks = blocks[:, 0].float().mean(dim=0)
    middle = blocks[1, 2, 2]
    for corner in (blocks[0, 0, 0], blocks[-1, -1, -1]):
        assert 0 < corner < middle
    torch.testing.assert_close(blocks, blocks.flip(0, 1, 2), atol=0.1, rtol=0)


def test_square_halves_its_ratio_when_the_paper_does():
    ratios = [ratio_at(query, 10_000, 0.8) for query in (0, 10, 11, 51, 201, 501, 1001, 2001, 8001)]
    halvings = [0, 0, 1, 2, 3, 4, 5, 6, 9]
    assert ratios == [0.8 / 2**n for n in halvings]
    assert ratio_at(500, 1000, 0.8) == ratio_at(5000, 10_000, 0.8)


@pytest.mark.parametrize("ratio", [0.8, 0.1, 0.01])
def test_square_blocks_are_blocks_of_about_that_ratio_within_the_mask(ratio):
    problem = problem_of(Linf(0.1, region="patch:0.4"))
    clips = torch.rand(300, 3, 6, 40, 40)
    with torch.no_grad():
        mask = problem.threat.mask(clips, range(300))
    problem = replace(problem, clips=clips, mask=mask)
    draws = torch.rand(300, 4, generator=torch.Generator().manual_seed(0))
    blocks = random_block(problem, clips, ratio, draws, reach_of(problem))
    assert not (blocks & ~mask).any()
    ratios = blocks.flatten(1).sum(1) / mask.expand_as(blocks).flatten(1).sum(1)
    assert float(ratios.mean()) == pytest.approx(ratio, rel=0.35)
    for block in blocks[:20, 0]:
        along = [block.any(2).any(1), block.any(2).any(0), block.any(1).any(0)]
        assert int(block.sum()) == int(torch.stack([a.sum() for a in along]).prod())


def test_square_makes_no_more_than_its_queries():
    model, clips = sharp(), random_clips()
    rows: list[int] = []
    model.register_forward_hook(lambda _, inputs, __: rows.append(len(inputs[0])))
    labels = predict(model, clips)
    rows.clear()
    solver = Square(queries=15, stop_when_fooled=False)
    attack(model, clips, labels, threat=Linf(0.05), goal="margin", solver=solver)
    assert sum(rows) == 6 * (15 + 1)  # and one pass over the clean clips


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


def test_square_in_l2_moves_budget_from_one_block_to_another():
    problem = problem_of(L2(0.3))
    problem = replace(problem, clips=torch.full_like(problem.clips, 0.5))
    draws = torch.rand(6, 11, generator=torch.Generator().manual_seed(2)).double()
    reach = reach_of(problem)
    delta = torch.randn(
        problem.clips.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    delta *= 0.3 / delta.flatten(1).norm(dim=1).view(-1, 1, 1, 1, 1)
    moved = move_budget(problem, delta, 0.1, draws, reach)
    block, other = (
        random_block(problem, delta, 0.1, each, reach).expand_as(delta)
        for each in (draws[:, :4], draws[:, 4:8])
    )
    assert (other & ~block).any()
    assert (moved[other & ~block] == 0).all()
    assert torch.equal(moved[~(block | other)], delta[~(block | other)])
    torch.testing.assert_close(moved.flatten(1).norm(dim=1), torch.full((6,), 0.3).double())
    # For half of its own change and half of the colour, as the sum of their unit vectors.
    for row in range(6):
        here = block[row]
        colours = (draws[row, 8:] - 0.5).sign()
        colour = colours.view(3, 1, 1, 1).expand_as(delta[row])[here]
        own = delta[row][here] / delta[row][here].norm() + colour / colour.norm()
        torch.testing.assert_close(moved[row][here] / moved[row][here].norm(), own / own.norm())


def test_square_in_l2_moves_budgets_from_its_second_query_on(monkeypatch):
    made = []

    def remember(part, delta, ratio, numbers, reach):
        made.append(ratio)
        return move_budget(part, delta, ratio, numbers, reach)

    monkeypatch.setattr("vidcsl.robustness.attacks.square.move_budget", remember)
    model, clips = sharp(), random_clips()
    solver = Square(queries=15, stop_when_fooled=False)
    options = {"threat": L2(0.1), "goal": "margin", "solver": solver}
    attack(model, clips, predict(model, clips), **options)
    assert made == [ratio_at(query, 15, 0.8) for query in range(1, 15)]


def test_square_leaves_a_clip_alone_that_every_change_makes_surer():
    clips = torch.full((2, 3, 2, 4, 4), 0.5)

    def surer(clips):
        sure = 1 + (clips - 0.5).abs().mean(dim=(1, 2, 3, 4))
        return torch.stack([sure, torch.zeros_like(sure)], dim=1)

    labels = torch.zeros(2, dtype=torch.long)
    options = {"goal": "margin", "solver": Square(queries=5)}
    assert torch.equal(attack(surer, clips, labels, threat=Linf(0.1), **options), clips)
