import pytest
import torch
import torch.nn.functional as F

from vidcsl.methods.false_negatives import AGGREGATES, SupportScores, pooled

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
def test_a_support_set_votes_block_by_block(aggregate):
    support, candidates = unit(4, 5, 6), unit(7, 6, seed=1)
    scores = SupportScores(support, candidates, views=2, aggregate=aggregate)
    every = torch.cat([scores(slice(0, 4)), scores(slice(4, 8))])
    for row in range(8):
        votes = torch.stack([candidates @ voice for voice in support[row // 2]])
        torch.testing.assert_close(every[row], REDUCE[aggregate](votes, row % 2))
