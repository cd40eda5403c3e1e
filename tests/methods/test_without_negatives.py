"""The losses that compare dimensions of a whole batch, on several processes."""

import copy
from dataclasses import replace

import pytest
import torch

from tests.methods.made import batch, make_method
from tests.processes import run_in_processes
from vidcsl.models.encoder import Norms

NAMES = ["vicreg", "barlow_twins", "lejepa"]


def _loss_and_gradient(distributed, name):
    """As DDP does it: each process its rows, then the mean of the gradients."""
    # Without BatchNorm, which would see the rows of one process only.
    method = make_method(name, norms=Norms(hidden=False, last=False), distributed=distributed)
    method, data = method.double(), batch(videos=6)
    each = 6 // distributed.size
    mine = slice(distributed.rank * each, (distributed.rank + 1) * each)
    data = replace(
        data,
        clips=data.clips.double()[mine],
        labels=data.labels[mine],
        groups=data.groups[mine],
        videos=data.videos[mine],
    )
    loss = method(data)["loss"]
    loss.backward()
    gradient = method.encoder.net[1].weight.grad
    return loss.detach(), distributed.total(gradient.clone()) / distributed.size


@pytest.mark.parametrize("name", NAMES)
def test_two_processes_compute_the_loss_of_the_joined_batch(name):
    (alone,) = run_in_processes(_loss_and_gradient, 1, name)
    for found in run_in_processes(_loss_and_gradient, 2, name):
        torch.testing.assert_close(found, alone)


@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_views_and_videos_does_not_matter(name):
    data, method = batch(videos=5).clips.double(), make_method(name).double()
    losses = [
        copy.deepcopy(method)(replace(batch(videos=5), clips=clips))["loss"]
        for clips in (data, data.flip(1), data.flip(0))
    ]
    torch.testing.assert_close(losses[1], losses[0])
    torch.testing.assert_close(losses[2], losses[0])
