import pytest
import torch

from tests.engine.worlds import run_in_world
from vidcsl.engine.distributed import World
from vidcsl.engine.tally import Tally
from vidcsl.objectives.metrics import Share


def step(loss, removed, right):
    """One step with anchors of two classes, and some of none."""
    removed, right = torch.tensor(removed), torch.tensor(right)
    return {
        "loss": torch.tensor(loss),
        "removed": Share(removed, torch.tensor([60, 30, 10])),
        "precision": Share(right, removed),
        "accuracy": Share(right.sum(), torch.tensor(20)),
    }


STEPS = [step(1.0, [6, 4, 0], [5, 0, 0]), step(3.0, [5, 0, 0], [1, 0, 0])]


def alone():
    return Tally(World(rank=0, size=1, device=torch.device("cpu")))


def check(tally):
    averages, by_class = tally.averages(), tally.by_class()
    assert averages["loss"] == pytest.approx(2.0)
    assert averages["removed"] == pytest.approx(15 / 200)
    assert averages["precision"] == pytest.approx(6 / 15)
    assert averages["accuracy"] == pytest.approx(6 / 40)
    assert by_class.keys() == {"removed", "precision"}
    assert by_class["removed"] == pytest.approx([11 / 120, 4 / 60])
    assert by_class["precision"] == pytest.approx([6 / 11, 0])


def test_means_and_exact_shares():
    tally = alone()
    assert tally.averages() == tally.by_class() == {}
    for values in STEPS:
        tally.add(values)
    check(tally)
    again = alone()
    again.load(tally.state())
    assert again.averages() == tally.averages()
    assert again.by_class() == tally.by_class()
    tally.reset()
    assert tally.state() == {}


def test_a_share_of_nothing_is_left_out():
    tally = alone()
    tally.add(step(1.0, [0, 0, 0], [0, 0, 0]))
    assert "precision" not in tally.averages()
    assert tally.by_class()["precision"] == [None, None]


def tallied(world):
    tally = Tally(world)
    tally.add(STEPS[world.rank])
    check(tally)
    return tally.state()


def test_processes_add_up():
    first, second = run_in_world(tallied, 2)
    assert first == second
