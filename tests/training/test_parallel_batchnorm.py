from copy import deepcopy

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import nn

from tests.processes import run_in_processes
from vidcsl.distributed import DistributedContext
from vidcsl.training.parallel import synchronise_batchnorm

SHARES = (3, 5)  # rows of each process
LAYOUTS = (torch.contiguous_format, torch.channels_last_3d)


def made(affine, momentum):
    norm = nn.BatchNorm3d(6, affine=affine, momentum=momentum)
    if affine:
        norm.weight.data, norm.bias.data = torch.linspace(-1, 2, 6), torch.linspace(3, -1, 6)
    return norm


def rows(layout, dtype):
    """Far from zero, where sums of squares lose digits; and what comes back for them."""
    generator = torch.Generator().manual_seed(0)
    values = 300 + torch.randn(sum(SHARES), 6, 2, 3, 4, generator=generator, dtype=torch.float64)
    given = torch.randn(values.shape, generator=generator, dtype=torch.float64)
    return [each.to(dtype).contiguous(memory_format=layout) for each in (values, given)]


def passes(norm, values, given):
    values = values.clone(memory_format=torch.preserve_format).requires_grad_()
    outputs = norm(values)
    outputs.backward(given)
    gradients = [values.grad, *(parameter.grad for parameter in norm.parameters())]
    return outputs.detach(), *gradients, norm.running_mean, norm.running_var


def in_part(distributed, affine, momentum, layout, dtype):
    norm = synchronise_batchnorm(nn.Sequential(made(affine, momentum)), distributed).train()[0]
    start = sum(SHARES[: distributed.rank])
    mine = slice(start, start + SHARES[distributed.rank])
    values, given = rows(layout, dtype)
    return passes(norm.to(dtype), values[mine], given[mine])


CASES = [
    (affine, momentum, layout, dtype)
    for affine, momentum in ((True, 0.1), (False, None))
    for layout in LAYOUTS
    for dtype in (torch.float32, torch.float64)
]


def in_every_case(distributed):
    return [in_part(distributed, *case) for case in CASES]


@pytest.fixture(scope="module")
def parts():
    return list(zip(*run_in_processes(in_every_case, 2), strict=True))


@pytest.mark.parametrize("number", range(len(CASES)))
def test_two_processes_normalise_as_one_does_the_joined_batch(parts, number):
    affine, momentum, layout, dtype = CASES[number]
    values, given = rows(layout, torch.float64)
    wanted = passes(made(affine, momentum).double(), values.to(dtype).double(), given)
    found = parts[number]
    close = {"rtol": 1e-9, "atol": 1e-9} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 2e-4}
    for place in (0, 1):  # outputs and the gradient of the input, row by row
        joined = torch.cat([part[place] for part in found]).double()
        torch.testing.assert_close(joined, wanted[place], **close)
    for place in range(2, len(wanted) - 2):  # gradients of the parameters: of each one's own rows
        summed = sum(part[place].double() for part in found)
        torch.testing.assert_close(summed, wanted[place], **close)
    for place in (-2, -1):
        for part in found:
            torch.testing.assert_close(part[place].double(), wanted[place], **close)


@pytest.mark.parametrize("training", [True, False])
def test_what_follows_within_a_norm_is_kept(training):
    """timm's image models have the activation there."""
    images = torch.randn(4, 6, 3, 3, generator=torch.Generator().manual_seed(0))
    plain = nn.Sequential(BatchNormAct2d(6, act_layer=nn.SiLU)).train(training)
    names = list(plain.state_dict())
    wanted = plain(images)
    alone = DistributedContext(rank=0, size=2, device=torch.device("cpu"))
    alone.total = lambda tensor: tensor  # the other one has no rows
    synced = synchronise_batchnorm(deepcopy(plain), alone)
    assert not isinstance(synced[0], BatchNormAct2d)
    assert list(synced.state_dict()) == names
    torch.testing.assert_close(synced(images), wanted)
