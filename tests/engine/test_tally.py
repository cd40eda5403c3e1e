import pytest
import torch

from tests.engine.worlds import run_in_world
from vidcsl.engine.distributed import World
from vidcsl.engine.tally import Tally


def step(loss, removed, right):
    return {
        "loss": torch.tensor(loss),
        "candidate_pairs": torch.tensor(100),
        "removed_pairs": torch.tensor(removed),
        "judged_pairs": torch.tensor(removed),
        "right_pairs": torch.tensor(right),
        "false_negative_pairs": torch.tensor(20),
        "undefined_rows": torch.tensor(1),
    }


def check(averages, *, undefined):
    assert averages["loss"] == pytest.approx(2.0)
    assert averages["removed"] == pytest.approx(15 / 200)
    assert averages["precision"] == pytest.approx(6 / 15)
    assert averages["recall"] == pytest.approx(6 / 40)
    assert averages["undefined_rows"] == undefined


def test_means_and_exact_shares():
    tally = Tally(World(rank=0, size=1, device=torch.device("cpu")))
    assert tally.averages() == {}
    tally.add(step(1.0, 10, 5))
    tally.add(step(3.0, 5, 1))
    check(tally.averages(), undefined=2)
    again = Tally(World(rank=0, size=1, device=torch.device("cpu")))
    again.load(tally.state())
    assert again.averages() == tally.averages()
    tally.reset()
    assert tally.state() == {}


def test_a_share_of_nothing_is_left_out():
    tally = Tally(World(rank=0, size=1, device=torch.device("cpu")))
    tally.add(step(1.0, 0, 0))
    assert "precision" not in tally.averages()


def tallied(world):
    tally = Tally(world)
    tally.add([step(1.0, 10, 5), step(3.0, 5, 1)][world.rank])
    return tally.averages()


def test_processes_add_up():
    for averages in run_in_world(tallied, 2):
        check(averages, undefined=2)
