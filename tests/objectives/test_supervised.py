from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from tests.objectives.made import batch, make_method


def test_the_loss_is_cross_entropy_over_views():
    data, method = batch(), make_method("supervised")
    out = method(data)
    logits = method.head(method.encoder(data.clips.flatten(0, 1)))
    wanted = F.cross_entropy(logits, data.labels.repeat_interleave(2))
    torch.testing.assert_close(out["loss"], wanted)
    right = logits.argmax(1) == data.labels.repeat_interleave(2)
    assert float(out["train_accuracy"]) == pytest.approx(float(right.float().mean()))


def test_a_small_step_against_the_gradient_lowers_the_loss():
    method = make_method("supervised").double()
    data = replace(batch(), clips=batch().clips.double())
    loss = method(data)["loss"]
    loss.backward()
    torch.optim.SGD(method.parameters(), lr=1e-4).step()
    assert float(method(data)["loss"].detach()) < float(loss.detach())


def test_a_head_that_names_one_class_is_right_of_its_videos():
    data, method = batch(videos=6, classes=3), make_method("supervised")
    torch.nn.init.zeros_(method.head.weight)
    for named in range(2):
        method.head.bias.data = 5 * F.one_hot(torch.tensor(named), len(method.head.bias)).float()
        assert float(method(data)["train_accuracy"]) == pytest.approx(1 / 3)
