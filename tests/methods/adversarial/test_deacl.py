import copy

import torch
import torch.nn.functional as F

from tests.methods.adversarial.test_contrastive import Darker
from tests.methods.made import batch, inner, make_method


def test_a_step_against_the_formula():
    data = batch()
    clips = data.clips.flatten(0, 1)
    method = make_method("deacl", attack=Darker())
    s, a, t = (
        F.normalize(network(each), dim=1)
        for network, each in (
            (method.encoder, clips),
            (method.encoder, clips * 0.9),
            (method.teacher, clips),
        )
    )
    wanted = -(s * t).sum(1).mean() - 2 * (a * s).sum(1).mean()
    torch.testing.assert_close(method(data)["loss"], wanted)


def test_the_attack_raises_the_loss():
    losses = [
        float(make_method("deacl", attack=inner(eps=eps, steps=5))(batch())["loss"].detach())
        for eps in (0, 0.1)
    ]
    assert losses[1] > losses[0] + 1e-3


def test_the_teacher_stays_as_it_is():
    method = make_method("deacl")
    before = copy.deepcopy(method.teacher.state_dict())
    method.train()(batch())["loss"].backward()
    assert not method.teacher.training
    assert all(torch.equal(before[key], each) for key, each in method.teacher.state_dict().items())
    assert all(parameter.grad is None for parameter in method.teacher.parameters())
