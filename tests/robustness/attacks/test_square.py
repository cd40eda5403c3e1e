"""Square as the paper describes it."""

from dataclasses import replace

import pytest
import torch

from tests.robustness.attacks.models import predict, problem_of, random_clips, sharp
from vidcsl.robustness.attacks import Square, attack
from vidcsl.robustness.attacks.square import move_budget, random_block, ratio_at, reach_of
from vidcsl.robustness.threats import L2, Linf


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
