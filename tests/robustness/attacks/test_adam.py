"""Adam, and its penalty on flicker as the paper gives it."""

import torch

from tests.robustness.attacks.models import predict, random_clips, sharp
from vidcsl.robustness.attacks import Adam, attack
from vidcsl.robustness.attacks.adam import unevenness
from vidcsl.robustness.threats import Flicker


def test_flicker_regulariser_by_its_formula():
    delta = torch.randn(2, 3, 5, 1, 1, generator=torch.Generator().manual_seed(0))
    for row, value in zip(delta, unevenness(delta), strict=True):
        d = row[:, :, 0, 0]
        first, second = d[:, 1:] - d[:, :-1], d[:, 2:] - 2 * d[:, 1:-1] + d[:, :-2]
        expected = (d**2).mean() + (first**2).mean() + (second**2).mean()
        torch.testing.assert_close(value, expected)


def test_smoothness_makes_flicker_smoother():
    model, clips = sharp(), random_clips()
    labels = predict(model, clips)
    found = []
    for smoothness in (0.0, 1000.0):
        solver = Adam(steps=30, smoothness=smoothness, random_start=False, stop_when_fooled=False)
        flicker = Flicker(0.2)
        adversarial = attack(model, clips, labels, threat=flicker, goal="hinge", solver=solver)
        delta = (adversarial - clips).mean(dim=(3, 4), keepdim=True)
        found.append(unevenness(delta).mean())
    assert found[1] < 0.9 * found[0]
