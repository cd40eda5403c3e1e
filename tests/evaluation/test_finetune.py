from dataclasses import replace

import pytest
import torch
from torch import nn

from tests.methods.made import batch as clip_batch
from tests.methods.made import inner
from vidcsl.evaluation.finetune import AdversarialLinear, FineTuned, layer_decayed_groups
from vidcsl.methods import ClipBatch
from vidcsl.models import ENCODERS
from vidcsl.seeding import numpy_generator


def method(name="r3d_18", **options):
    shape = {"width": 4} if name == "r3d_18" else {"width": 24, "depth": 3}
    encoder = ENCODERS[name](clip_frames=4, frame_size=32, **shape)
    return FineTuned(encoder, feature_dim=encoder.feature_dim, classes=3, **options)


def batch(progress=0.0):
    generator = torch.Generator().manual_seed(0)
    clips = torch.rand(4, 1, 3, 4, 32, 32, generator=generator)
    ids = torch.arange(4)
    return ClipBatch(clips, ids % 3, ids, ids, progress)


@pytest.mark.parametrize(("name", "blocks"), [("r3d_18", 8), ("video_vit_s", 3)])
def test_learning_rates_shrink_block_by_block(name, blocks):
    tuned = method(name)
    groups = layer_decayed_groups(tuned, weight_decay=0.1, layer_decay=0.5)
    held = [id(p) for group in groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in tuned.parameters())
    scales = {group["lr_scale"] for group in groups}
    assert scales == {0.5**depth for depth in range(blocks + 2)}
    of = {id(p): group for group in groups for p in group["params"]}
    assert of[id(tuned.head.weight)]["lr_scale"] == 1
    first = next(tuned.encoder.parameters())
    assert of[id(first)]["lr_scale"] == 0.5 ** (blocks + 1)
    assert of[id(tuned.head.bias)]["weight_decay"] == 0
    assert of[id(tuned.head.weight)]["weight_decay"] == 0.1


def test_dropout_and_mixup_draw_from_the_batch_alone():
    plain, dropped, mixed = (
        method(**options) for options in ({}, {"dropout": 0.5}, {"mixup": 1.0})
    )
    for other in (dropped, mixed):
        other.load_state_dict(plain.state_dict())
        other.train()
        first = other(batch())["loss"]
        torch.rand(7)  # the global generator does not matter
        torch.testing.assert_close(other(batch())["loss"], first)
        assert not torch.allclose(other(batch(progress=0.5))["loss"], first)
        assert not torch.allclose(first, plain.train()(batch())["loss"])
        other.eval(), plain.eval()
        plain.load_state_dict(other.state_dict())
        torch.testing.assert_close(other(batch())["loss"], plain(batch())["loss"])


def test_the_mixed_loss_is_that_of_both_labels():
    tuned = method(mixup=1.0).train()
    made = batch()
    draws = numpy_generator(0, 0, 0, "mixup")  # the run's seed, progress, the first video
    ratio, partners = draws.beta(1.0, 1.0), torch.from_numpy(draws.permutation(4))
    clips = made.clips[:, 0]
    logits = tuned.head(tuned.encoder(ratio * clips + (1 - ratio) * clips[partners]))
    own, other = (
        torch.nn.functional.cross_entropy(logits, labels)
        for labels in (made.labels, made.labels[partners])
    )
    torch.testing.assert_close(tuned(made)["loss"], ratio * own + (1 - ratio) * other)


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(96, 6), nn.BatchNorm1d(6))

    def forward(self, clips):
        return self.net(clips)


def test_alf_trains_only_the_head_on_perturbed_clips():
    torch.manual_seed(0)
    # The head alone is a convex problem: its loss falls for any encoder.
    method = AdversarialLinear(Normed(), feature_dim=6, classes=2, attack=inner(eps=0.1)).double()
    data = replace(clip_batch(), clips=clip_batch().clips.double())
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
