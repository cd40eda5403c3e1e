from dataclasses import replace

import pytest
import torch

from tests.methods.made import batch, make_method
from vidcsl.distributed import DistributedContext
from vidcsl.methods.swav import sinkhorn


def naive_codes(scores, epsilon=0.05, iterations=3):
    """Rows and columns of exp(s / eps) scaled in turn, as in the paper's pseudo-code."""
    q = (scores / epsilon).exp()
    for _ in range(iterations):
        q = q / q.sum(dim=0, keepdim=True) / q.shape[1]
        q = q / q.sum(dim=1, keepdim=True) / q.shape[0]
    return q * q.shape[0]


@pytest.mark.parametrize("views", [2, 3])
def test_a_step_against_loops(views):
    data, method = batch(videos=6, views=views), make_method("swav").double()
    data = replace(data, clips=data.clips.double())
    z = method.projector(method.encoder(data.clips.flatten(0, 1)))
    scores = (z / z.norm(dim=1, keepdim=True)) @ method.prototypes.T  # [6 * V, 5]
    by_view = scores.unflatten(0, (6, views))
    codes = [naive_codes(by_view[:, v].detach()) for v in range(views)]
    total, terms = 0.0, 0
    for a in range(views):
        for b in range(views):
            if a == b:
                continue
            for i in range(6):
                logits = by_view[i, b] / 0.1
                total = total - (codes[a][i] * (logits - logits.exp().sum().log())).sum()
                terms += 1
    loss = method(data)["loss"]
    torch.testing.assert_close(loss, total / terms)
    weights = (method.encoder.net[1].weight, method.prototypes)
    mine, theirs = (torch.autograd.grad(each, weights) for each in (loss, total / terms))
    torch.testing.assert_close(mine, theirs)


def test_codes_use_all_prototypes_alike():
    scores = torch.randn(40, 4, dtype=torch.float64).add(torch.tensor([5.0, 0, 0, 0]))
    codes = sinkhorn(scores / 0.5, iterations=50, distributed=DistributedContext())
    torch.testing.assert_close(codes.sum(1), torch.ones(40).double())
    torch.testing.assert_close(codes.sum(0), torch.full((4,), 10.0).double(), rtol=1e-3, atol=0)
    assert (
        sinkhorn(
            torch.tensor([[500.0, -500], [500, 400]]),
            iterations=3,
            distributed=DistributedContext(),
        )
        .isfinite()
        .all()
    )


def test_prototypes_stay_for_the_first_epoch_and_are_of_unit_length():
    method = make_method("swav")  # frozen for 0.3 of the training
    before = method.prototypes.clone()
    optimiser = torch.optim.AdamW(method.parameters(), lr=0.05, weight_decay=0.1)
    for progress, frozen in ((0.0, True), (0.29, True), (0.3, False)):
        optimiser.zero_grad()
        method(batch(progress=progress))["loss"].backward()
        optimiser.step()
        method.after_step(progress)
        assert torch.allclose(method.prototypes, before, atol=1e-6) == frozen
        torch.testing.assert_close(method.prototypes.norm(dim=1), torch.ones(5))
