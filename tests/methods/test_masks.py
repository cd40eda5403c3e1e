import pytest
import torch

from vidcsl.methods.losses import above, as_numbers, at_least, count, equal


@pytest.mark.parametrize(("rows", "columns"), [(5, 7), (1, 300), (3, 0)])
def test_against_bool_arithmetic(rows, columns):
    generator = torch.Generator().manual_seed(0)
    one = torch.randint(-1, 3, (rows,), generator=generator)
    other = torch.randint(-1, 3, (columns,), generator=generator)
    mask = equal(one, other)
    assert mask.dtype == torch.bool
    assert torch.equal(mask, one[:, None] == other[None])
    assert torch.equal(count(mask), mask.sum(dim=1))
    assert torch.equal(as_numbers(mask.T, torch.float64), mask.T.double())


def test_limits():
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(5, (6, 9), generator=generator) / 4
    limits = torch.tensor([0.25, 0.5, 1.0, -1.0, torch.inf, 0.0])
    assert torch.equal(at_least(values, limits), values >= limits[:, None])
    assert torch.equal(above(values, 0.5), values > 0.5)
    assert torch.equal(above(values.T, 0.5), values.T > 0.5)


def test_as_many_as_a_queue_holds_are_counted():
    assert count(torch.ones(2, 70_000, dtype=torch.bool)).tolist() == [70_000] * 2
