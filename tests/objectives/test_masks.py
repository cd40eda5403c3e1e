import pytest
import torch

from vidcsl.objectives.masks import as_numbers, count, equal


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
