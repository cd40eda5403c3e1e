import pytest
import torch

from vidcsl.config import default_config
from vidcsl.data.lists import VideoList
from vidcsl.distributed import DistributedContext
from vidcsl.methods import Method
from vidcsl.pipelines.context import EvaluationContext, subset


def share(chosen, answered=(), *, rank=0, size=1):
    cfg = default_config()
    cfg.EVALUATE.BATCH = 4
    distributed = DistributedContext(rank=rank, size=size, device=torch.device("cpu"))
    return EvaluationContext(cfg, None, None, distributed, None)._share(chosen, answered)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("answered", [set(), {0, 1, 2, 3}, {0, 8, 9, 10, 11, 25}, set(range(13))])
def test_blocks_are_the_same_whoever_computes_them_and_whatever_is_done(size, answered):
    chosen = list(range(0, 27))
    whole = [chosen[start : start + 4] for start in range(0, 27, 4)]
    seen = []
    for rank in range(size):
        mine = share(chosen, answered, rank=rank, size=size)
        seen += [mine[start : start + 4] for start in range(0, len(mine), 4)]
    assert sorted(seen) == [block for block in whole if not answered >= set(block)]


def test_a_subset_is_evenly_spread():
    assert subset(range(10), 0) == subset(range(10), 10) == subset(range(10), 99) == list(range(10))
    assert subset(range(10), 4) == [0, 3, 6, 9]


@pytest.mark.parametrize(
    ("key", "value"), [("HEADS", 4), ("POSITIONS", "rotary"), ("POOLING", "cls"), ("NAME", "x")]
)
def test_answers_of_another_network_with_the_same_weights_are_others(key, value):
    cfg = default_config()
    distributed = DistributedContext(rank=0, size=1, device=torch.device("cpu"))
    videos = VideoList((), ("a",), "list.csv")
    context = EvaluationContext(cfg, Method(torch.nn.Identity()), videos, distributed, None)
    before = context.settings(videos, "digest")
    assert context.settings(videos, "digest") == before
    cfg.MODEL[key] = value
    assert context.settings(videos, "digest") != before
