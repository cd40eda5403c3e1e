import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from vidcsl.augment.transforms import CROP_TRIES, ClipDraws, between, clip_draws, uniform_draws

SEEDS = st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=6)


@given(seeds=SEEDS, count=st.integers(1, 40))
def test_each_row_depends_on_its_seed_alone(seeds: list[int], count: int) -> None:
    rows = uniform_draws(seeds, count)
    assert rows.shape == (len(seeds), count)
    assert rows.dtype == torch.float32
    assert rows.min() >= 0
    assert rows.max() < 1
    for row, seed in zip(rows, seeds, strict=True):
        assert torch.equal(row, uniform_draws([seed], count)[0])


def test_draws_are_uniform_and_uncorrelated() -> None:
    rows = uniform_draws(range(4000), 5).numpy()
    assert np.allclose(rows.mean(0), 0.5, atol=0.02)
    assert np.allclose(rows.var(0), 1 / 12, atol=0.005)
    assert np.allclose(np.corrcoef(rows.T), np.eye(5), atol=0.06)


def test_global_random_state_is_left_alone() -> None:
    torch_before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    clip_draws([1, 2])
    assert torch.equal(torch.get_rng_state(), torch_before)
    assert (np.random.get_state()[1] == numpy_before).all()


def test_every_field_has_numbers_of_its_own() -> None:
    draws = clip_draws([3, 4, 5])
    assert draws.area.shape == draws.aspect.shape == (3, CROP_TRIES)
    assert draws.jitter_order.shape == draws.jitter_strengths.shape == (3, 4)
    singles = set(ClipDraws._fields) - {"area", "aspect", "jitter_order", "jitter_strengths"}
    assert all(getattr(draws, name).shape == (3,) for name in singles)
    numbers = torch.cat([part.flatten() for part in draws])
    assert numbers.unique().numel() == numbers.numel()


def test_between_reaches_its_ends() -> None:
    assert between(-2.0, 3.0, torch.tensor([0.0, 0.5, 1.0])).tolist() == [-2.0, 0.5, 3.0]
