import copy

import pytest
import torch

from tests.methods.made import batch, make_method


@pytest.mark.parametrize("views", [2, 4])
def test_a_step_against_loops(views):
    data, method = batch(videos=4, views=views), make_method("byol")
    teacher = copy.deepcopy(method.teacher)
    flat = data.clips.flatten(0, 1)
    p = method.predictor(method.projector(method.encoder(flat)))
    z = teacher.projector(teacher.encoder(flat)).detach()
    terms = [
        ((p[i] / p[i].norm()) - (z[j] / z[j].norm())).square().sum()
        for i in range(4 * views)
        for j in range(4 * views)
        if i != j and i // views == j // views
    ]
    wanted = sum(terms) / len(terms)
    loss = method(data)["loss"]
    torch.testing.assert_close(loss, wanted)
    weight = method.encoder.net[1].weight
    mine, theirs = (torch.autograd.grad(each, weight)[0] for each in (loss, wanted))
    torch.testing.assert_close(mine, theirs)
