import pytest
import torch
from torch import nn

from tests.engine.worlds import run_in_world
from vidcsl.engine.distributed import World
from vidcsl.robustness.attack_curve import attack_curve
from vidcsl.robustness.attacks import PGD, attack
from vidcsl.robustness.clips import Clips
from vidcsl.robustness.corruption_table import corruption_table
from vidcsl.robustness.corruptions import corrupt
from vidcsl.robustness.threats import Linf

EPS = {"1/255": 1 / 255, "4/255": 4 / 255, "16/255": 16 / 255}


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3 * 4 * 8 * 8, 3)

    def forward(self, clips):
        return self.layer(clips.flatten(1))


def data(model):
    """Twelve clips of which most are right."""
    generator = torch.Generator().manual_seed(1)
    clips = torch.rand(12, 3, 4, 8, 8, generator=generator)
    labels = model(clips).argmax(dim=1)
    labels[:2] = (labels[:2] + 1) % 3
    return Clips(clips, labels, list(range(12)), list(range(12)))


def attacks(solver):
    def make(eps):
        return lambda model, clips, labels, seeds: attack(
            model, clips, labels, threat=Linf(eps), solver=solver, seeds=seeds
        )

    return {key: make(eps) for key, eps in EPS.items()}


def batches(clips, size):
    return [clips.take(rows) for rows in torch.arange(len(clips)).split(size)]


def alone():
    return World(rank=0, size=1, device=torch.device("cpu"))


def test_curve_is_the_worst_case_over_nested_budgets():
    model = Net().eval()
    clips, solver = data(model), PGD(steps=3)
    curve = attack_curve(model, batches(clips, 5), attacks(solver), world=alone())
    standing = torch.ones(12, dtype=torch.bool)
    standing &= model(clips.clips).argmax(1) == clips.labels
    assert curve.clips == 12
    assert curve.clean == int(standing.sum()) == 10
    for key, eps in EPS.items():
        threat = Linf(eps)
        attacked = attack(
            model, clips.clips, clips.labels, threat=threat, solver=solver, seeds=clips.seeds
        )
        standing &= model(attacked).argmax(1) == clips.labels
        assert curve.right[key] == int(standing.sum())
    assert curve.accuracy()["16/255"] == 0
    assert curve.survival()["1/255"] == curve.right["1/255"] / 10
    assert curve.example["label"] == curve.example["clean_prediction"]
    assert curve.example["label"] != curve.example["adversarial_prediction"]
    assert abs(curve.example["difference"]).max() <= EPS[curve.example["eps"]] * 1.001


def test_table_against_a_loop():
    model = Net().eval()
    clips = data(model)
    names = ["P/gaussian_noise", "C/contrast"]
    table, clean, count = corruption_table(model, batches(clips, 5), names, world=alone())
    assert (clean, count) == (10 / 12, 12)
    for name in names:
        for severity, accuracy in enumerate(table[name], start=1):
            corrupted = corrupt(clips.clips, name, severity=severity, seeds=clips.seeds)
            right = (model(corrupted).argmax(1) == clips.labels).float().mean()
            assert accuracy == pytest.approx(float(right))


def shared(world):
    model = Net().eval()
    mine = batches(data(model), 12 // world.size)[world.rank :: world.size]
    curve = attack_curve(model, mine, attacks(PGD(steps=3)), world=world)
    table = corruption_table(model, mine, ["P/gaussian_noise"], world=world)
    return curve.right, curve.clean, curve.clips, table


def test_two_processes_count_what_one_counts():
    single = shared(alone())
    assert run_in_world(shared, 2) == [single, single]
