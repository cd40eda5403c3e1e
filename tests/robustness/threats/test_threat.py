import math

import pytest
import torch

from vidcsl.errors import UserError
from vidcsl.robustness.threats import THREATS
from vidcsl.robustness.threats.threat import draw_levels


def generators(count: int, seed: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed + i) for i in range(count)]


@pytest.mark.parametrize("eps", [-0.1, math.nan, math.inf])
@pytest.mark.parametrize("name", sorted(THREATS))
def test_eps_must_be_a_budget(name, eps):
    with pytest.raises(UserError, match="eps"):
        THREATS[name](eps=eps)


def test_levels_are_uniform_and_of_the_clip_alone():
    drawn = draw_levels(torch.empty(2, 3, 50, 21, 33), generators(2))  # no multiple of eight
    counts = (drawn * 256).long().flatten().bincount(minlength=256)
    assert len(counts) == 256
    mean = drawn.numel() / 256
    chi_square = float(((counts - mean) ** 2 / mean).sum())
    assert 180 < chi_square < 345  # 255 degrees of freedom: 0.1 % to either side
    assert torch.equal(draw_levels(drawn[1:], generators(1, seed=1)), drawn[1:])
    assert not torch.equal(drawn[0], drawn[1])
