import pytest
import torch
import torch.nn.functional as F

from tests.methods.adversarial.test_contrastive import Darker
from tests.methods.made import batch, inner, make_method
from vidcsl.methods.adversarial.classifier import LEVELS


def logits_of(method, clips):
    return method.head(method.encoder(clips))


def test_steps_against_the_formulas():
    data = batch()
    clips, labels = data.clips.flatten(0, 1), data.labels.repeat_interleave(2)
    method = make_method("at", attack=Darker())
    torch.testing.assert_close(
        method(data)["loss"], F.cross_entropy(logits_of(method, clips * 0.9), labels)
    )
    method = make_method("trades", attack=Darker(), beta=3.0)
    p = logits_of(method, clips).softmax(1)
    q = logits_of(method, clips * 0.9).softmax(1)
    wanted = -p[range(12), labels].log().mean() + 3 * (p * (p / q).log()).sum(1).mean()
    torch.testing.assert_close(method(data)["loss"], wanted)


@pytest.mark.parametrize("name", ["at", "trades"])
def test_the_attack_raises_the_loss(name):
    losses = [
        float(make_method(name, attack=inner(eps=eps, steps=5))(batch())["loss"].detach())
        for eps in (0, 0.1)
    ]
    assert losses[1] > losses[0] + 1e-3


def test_budgets_follow_what_each_video_withstands():
    data = batch(videos=6)
    method = make_method("at", attack=(spy := Spy()), adaptive=True)
    method.budgets.level[data.videos] = torch.tensor([0, 1, 2, 2, LEVELS, 0])
    right = logits_of(method, data.clips.flatten(0, 1)).argmax(1).view(6, 2) == data.labels[:, None]
    out = method(data)
    assert spy.fractions == {0.0: 4, 0.25: 2, 0.5: 4, 1.0: 2}  # clips, two a video
    moved = torch.where(right.all(1), 1, -1)
    wanted = (torch.tensor([0, 1, 2, 2, LEVELS, 0]) + moved).clamp(0, LEVELS)
    assert torch.equal(method.budgets.level[data.videos], wanted)
    assert float(out["budget"]) == pytest.approx(float(wanted.float().mean()) / LEVELS)
    assert set(method.budgets.level.tolist()) >= {1}  # the others are where they were


class Spy(Darker):
    def __init__(self):
        self.fractions = {}

    def __call__(self, _network, clips, loss, *, seeds, progress, fraction):
        assert len(seeds) == len(clips)
        self.fractions[fraction] = len(clips)
        return clips
