"""A person's own model: inside a function, in train mode, changing its input, no classifier."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from tests.robustness.attacks.models import CLASSES, TinyNet, predict, random_clips, seeded, sharp
from vidcsl.errors import UserError
from vidcsl.robustness.attack_curve import attack_batch
from vidcsl.robustness.attacks import PGD, RandomNoise, Square, attack
from vidcsl.robustness.corruption_table import predict as predict_corrupted
from vidcsl.robustness.targets import Clips, Expectation
from vidcsl.robustness.threats import Linf

GLOBAL = seeded(TinyNet)


def through_a_global(clips):
    return GLOBAL(clips)


class Holder:
    """A plain object, as inference code has them, with its network in a list."""

    def __init__(self, net):
        self.parts = [{"net": net}]

    def __call__(self, clips):
        return self.parts[0]["net"](clips)

    def logits(self, clips):
        return self(clips)


def decorated(net):
    @torch.enable_grad()
    def call(clips):
        return net(clips)

    return call


class Unregistered(nn.Module):
    """A module that holds another where torch does not look."""

    def __init__(self, net):
        super().__init__()
        self.nets = [net]

    def forward(self, clips):
        return self.nets[0](clips)


WRAPPERS = {
    "function": lambda net: lambda clips: net(clips),
    "forward": lambda net: net.forward,
    "partial": lambda net: partial(lambda model, clips: model(clips), net),
    "default": lambda net: lambda clips, model=net: model(clips),
    "nested": lambda net: (lambda inner: lambda clips: inner(clips))(lambda clips: net(clips)),
    "object": Holder,
    "method": lambda net: Holder(net).logits,
    "decorated": decorated,
    "unregistered": Unregistered,
}


@pytest.mark.parametrize("name", [*WRAPPERS, "global"])
def test_a_network_in_train_mode_is_found_wherever_a_function_holds_it(name):
    clips, labels = random_clips(), torch.arange(6) % CLASSES
    net = GLOBAL if name == "global" else seeded(TinyNet)
    options = {"threat": Linf(0.05), "solver": PGD(steps=4, stop_when_fooled=False)}
    wanted = attack(net.eval(), clips, labels, **options)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    net.train()
    model = through_a_global if name == "global" else WRAPPERS[name](net)
    with pytest.warns(UserWarning, match="train mode"):
        found = attack(model, clips, labels, **options)
    assert torch.equal(found, wanted)
    assert all(module.training for module in net.modules())
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert all(parameter.requires_grad for parameter in net.parameters())
    net.eval()


def test_a_function_that_is_random_or_moves_its_network_says_so():
    clips, labels = random_clips(), torch.arange(6) % CLASSES
    options = {"threat": Linf(0.05), "solver": PGD(steps=2)}
    net = seeded(TinyNet)

    def always_training(clips):
        return net.train()(clips)

    before = {key: value.clone() for key, value in net.state_dict().items()}
    with pytest.warns(UserWarning, match="random|changed") as caught:
        attack(always_training, clips, labels, **options)
    texts = " ".join(str(each.message) for each in caught)
    assert "two passes over the same clips differ" in texts
    assert "running_mean" in texts
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert not any(module.training for module in net.modules())


def test_a_model_in_eval_mode_causes_no_warning(recwarn):
    clips, net = random_clips(), seeded(TinyNet)
    for model in (net, lambda clips: net(clips), net.forward):
        attack(model, clips, predict(net, clips), threat=Linf(0.05), solver=PGD(steps=2))
    assert not recwarn.list


class InPlace(nn.Module):
    """Normalises its input in place, as a loader's code does."""

    def __init__(self):
        super().__init__()
        self.net = sharp()

    def forward(self, clips):
        return self.net(clips.sub_(0.4).div_(0.2))


class Outside(InPlace):
    def forward(self, clips):
        return self.net((clips - 0.4) / 0.2)


@pytest.mark.parametrize("solver", [PGD(steps=4), Square(queries=20), RandomNoise(3)], ids=repr)
def test_a_model_may_change_the_clips_that_it_is_given(solver):
    clips = random_clips()
    kept, labels = clips.clone(), predict(Outside(), clips)
    found = {}
    for model in (InPlace().eval(), Outside().eval()):
        found[type(model)] = attack(model, clips, labels, threat=Linf(0.02), solver=solver)
        assert torch.equal(clips, kept)
    assert torch.equal(*found.values())


def test_a_model_that_changes_its_clips_is_judged_and_corrupted_like_any_other():
    clips = random_clips(4, (3, 4, 16, 16)).float()
    kept = clips.clone()
    labels = predict(Outside().float(), clips)

    def outcomes(model):
        batch = Clips(kept.clone(), labels, range(4), range(4))
        attacks = {
            eps: lambda model, clips, labels, seeds, start=None, eps=float(eps): attack(
                model, clips, labels, threat=Linf(eps), solver=PGD(steps=2), start=start
            )
            for eps in ("0.01", "0.02")
        }
        curve = attack_batch(model, batch, attacks)
        table = [predict_corrupted(model, batch, "C/contrast", s) for s in (0, 1, 0, 3)]
        assert torch.equal(batch.clips, kept)
        return curve, table

    assert outcomes(InPlace().float().eval()) == outcomes(Outside().float().eval())


def test_every_draw_of_an_expectation_sees_the_same_clips():
    clips = random_clips()
    seen = [
        Expectation(model.eval(), lambda clips, _: clips, draws=3)(clips.clone())
        for model in (InPlace(), Outside())
    ]
    assert torch.equal(*seen)


def tuple_of(net):
    return lambda clips: (net(clips), clips.mean())


MISTAKES = {
    "a solver's class": ({"solver": PGD}, r"an instance, PGD\(\)"),
    "a threat's class": ({"threat": Linf}, r"an instance, Linf\("),
    "float labels": ({"labels": [0.0] * 6}, "integer labels"),
    "clips of an array": ({"clips": random_clips().numpy()}, r"torch.from_numpy\(clips\)"),
    "channels last": (
        {"clips": random_clips(6, (4, 6, 6, 3))},
        r"clips.permute\(0, 4, 1, 2, 3\)",
    ),
    "frames before channels": (
        {"clips": random_clips(6, (4, 3, 6, 6))},
        r"clips.transpose\(1, 2\)",
    ),
    "half": ({"model": sharp().half()}, r"model.float\(\)"),
    "bfloat16": ({"model": sharp().bfloat16()}, r"model.float\(\)"),
    "single": ({"model": sharp().float()}, r"clips.float\(\)"),
    "tuple": ({"model": tuple_of(sharp())}, r"lambda clips: model\(clips\)\[0\]"),
    "dict": ({"model": lambda clips: {"logits": clips}}, r"model\(clips\)\['logits'\]"),
    "one logit": ({"model": lambda clips: clips.mean((2, 3, 4))[:, :1]}, "pad"),
    "flat": ({"model": lambda clips: clips.mean((1, 2, 3, 4))}, "pad"),
    "other size": (
        {"model": nn.Sequential(nn.Flatten(), nn.Linear(7, 2)).eval().double()},
        "cannot take clips",
    ),
}


@pytest.mark.parametrize("name", list(MISTAKES))
def test_a_mistake_is_answered_by_its_remedy_in_one_line(name):
    changed, remedy = MISTAKES[name]
    given = {"model": sharp(), "clips": random_clips(), "labels": torch.zeros(6).long()}
    given |= {"threat": Linf(0.05), "solver": PGD(steps=2)} | changed
    with pytest.raises(UserError, match=remedy) as caught:
        attack(given.pop("model"), given.pop("clips"), given.pop("labels"), **given)
    assert "\n" not in str(caught.value)


def test_three_frames_of_three_channels_are_asked_about():
    clips = random_clips(6, (3, 3, 6, 6))
    with pytest.warns(UserWarning, match=r"\[N, 3, T, H, W\].*transpose"):
        attack(sharp(), clips, predict(sharp(), clips), threat=Linf(0.05), solver=PGD(steps=2))


def test_labels_may_be_a_list_or_an_array():
    model, clips = sharp(), random_clips()
    labels = predict(model, clips)
    options = {"threat": Linf(0.05), "solver": PGD(steps=3)}
    wanted = attack(model, clips, labels, **options)
    for given in (labels.tolist(), labels.numpy(), labels.numpy().astype(np.uint8)):
        assert torch.equal(attack(model, clips, given, **options), wanted)
