import math

import pytest
import torch
from torch import nn

from vidcsl.errors import Diverged
from vidcsl.training.optimisation import Guard, build_optimiser, cosine_lr, scaled_lr, set_lr


def test_schedule_rises_linearly_then_falls_along_a_cosine():
    rates = [cosine_lr(s, peak=2.0, warmup_steps=4, total_steps=12) for s in range(13)]
    assert rates[:4] == [0.5, 1.0, 1.5, 2.0]
    for step in range(4, 13):
        assert rates[step] == pytest.approx(1 + math.cos(math.pi * (step - 4) / 8))
    assert cosine_lr(0, peak=1.0, warmup_steps=0, total_steps=5) == 1.0


def test_the_rate_is_scaled_with_the_batch():
    assert scaled_lr(0.1, batch=512, reference_batch=256) == pytest.approx(0.2)
    assert scaled_lr(0.1, batch=512, reference_batch=0) == 0.1


@pytest.mark.parametrize("name", ["sgd", "adamw", "lars"])
def test_every_optimiser_lowers_a_loss_and_spares_biases_and_norms(name):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1)).double()
    optimiser = build_optimiser(model, name=name, lr=0.05, weight_decay=0.1, momentum=0.9)
    decayed = {id(p) for g in optimiser.param_groups if g["weight_decay"] > 0 for p in g["params"]}
    assert decayed == {id(model[0].weight), id(model[2].weight)}
    inputs = torch.randn(32, 4, dtype=torch.float64)
    target = inputs.sum(dim=1, keepdim=True)
    losses = []
    for _ in range(30):
        optimiser.zero_grad()
        loss = (model(inputs) - target).square().mean()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    set_lr(optimiser, 0.3)
    assert {group["lr"] for group in optimiser.param_groups} == {0.3}


def test_sgd_is_plain_momentum():
    weight = nn.Parameter(torch.tensor([[1.0]]))
    holder = nn.Module()
    holder.weight = weight
    optimiser = build_optimiser(holder, name="sgd", lr=0.1, weight_decay=0.0, momentum=0.5)
    for _ in range(2):
        optimiser.zero_grad()
        weight.sum().backward()
        optimiser.step()
    assert weight.item() == pytest.approx(1 - 0.1 - 0.15)


def test_a_spike_is_detected_against_the_losses_before():
    guard = Guard(spike=5.0)
    generator = torch.Generator().manual_seed(0)
    for value in (4 + 0.1 * torch.randn(60, generator=generator)).tolist():
        guard.check(value)
    guard.check(4.3)
    fresh = Guard(spike=5.0)
    fresh.load_state_dict(guard.state_dict())
    for each in (guard, fresh):
        with pytest.raises(Diverged, match="jumped to 5"):
            each.check(5.0)
    Guard(spike=5.0).check(1e9)  # nothing to hold it against yet
    steady = Guard(spike=5.0)
    for _ in range(50):
        steady.check(2.0)
    steady.check(2.05)
    with pytest.raises(Diverged):
        steady.check(2.5)
