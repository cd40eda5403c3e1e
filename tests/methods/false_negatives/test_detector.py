import pytest
import torch
import torch.nn.functional as F

from vidcsl.methods.false_negatives import AGGREGATES, Samples, SupportScores, pooled

REDUCE = {
    "own": lambda scores, i: scores[i],
    "mean": lambda s, _: s.mean(0),
    "max": lambda s, _: s.amax(0),
}


def unit(*shape, seed=0):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_pooled_over_the_views_of_a_video(aggregate):
    similarities = unit(6, 4) @ unit(5, 4, seed=1).T
    scores = pooled(similarities, views=3, aggregate=aggregate)
    for row in range(6):
        video = similarities[row // 3 * 3 : row // 3 * 3 + 3]
        torch.testing.assert_close(scores[row], REDUCE[aggregate](video, row % 3))


@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_support_views_score_block_by_block(aggregate):
    support, candidates = unit(4, 5, 6), unit(7, 6, seed=1)
    scores = SupportScores(support, candidates, views=2, aggregate=aggregate)
    every = torch.cat([scores(slice(0, 4)), scores(slice(4, 8))])
    for row in range(8):
        scored = torch.stack([candidates @ view for view in support[row // 2]])
        torch.testing.assert_close(every[row], REDUCE[aggregate](scored, row % 2))


@pytest.mark.parametrize(("rows", "columns"), [(5, 7), (1, 300), (3, 0)])
def test_samples_are_the_same_where_both_are_known_and_equal(rows, columns):
    generator = torch.Generator().manual_seed(0)
    mine = torch.randint(-1, 3, (rows,), generator=generator)
    theirs = torch.randint(-1, 3, (columns,), generator=generator)
    same = Samples(*[mine] * 4).same(Samples(*[theirs] * 4), "groups")
    assert same.dtype == torch.bool
    assert torch.equal(same, (mine[:, None] == theirs) & (mine[:, None] >= 0) & (theirs >= 0))
