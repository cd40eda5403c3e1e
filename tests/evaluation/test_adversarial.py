from dataclasses import replace

import torch
from torch import nn

from tests.methods.made import batch, inner
from vidcsl.evaluation.finetune import AdversarialLinear


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(96, 6), nn.BatchNorm1d(6))

    def forward(self, clips):
        return self.net(clips)


def test_only_the_head_learns_from_perturbed_clips():
    torch.manual_seed(0)
    # The head alone is a convex problem: its loss falls for any encoder.
    method = AdversarialLinear(Normed(), feature_dim=6, classes=2, attack=inner(eps=0.1)).double()
    data = replace(batch(), clips=batch().clips.double())
    before = {key: tensor.clone() for key, tensor in method.encoder.state_dict().items()}
    optimiser = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.5)
    losses = []
    for _ in range(20):
        loss = method.train()(data)["loss"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert all(torch.equal(before[key], each) for key, each in method.encoder.state_dict().items())
    assert losses[-1] < losses[0]
    assert not method.encoder.training
    method.attack = inner(eps=0.0)
    assert method(data)["loss"] < losses[-1]  # clean clips are easier than perturbed ones
