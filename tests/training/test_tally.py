import pytest
import torch

from tests.processes import run_in_processes
from vidcsl.distributed import DistributedContext
from vidcsl.methods.method import Ratio
from vidcsl.training.train import MetricAccumulator


def step(loss, removed, right):
    """One step with anchors of two classes, and some of none."""
    removed, right = torch.tensor(removed), torch.tensor(right)
    return {
        "loss": torch.tensor(loss),
        "removed": Ratio(removed, torch.tensor([60, 30, 10])),
        "precision": Ratio(right, removed),
        "accuracy": Ratio(right.sum(), torch.tensor(20)),
    }


STEPS = [step(1.0, [6, 4, 0], [5, 0, 0]), step(3.0, [5, 0, 0], [1, 0, 0])]


def alone():
    return MetricAccumulator(DistributedContext(rank=0, size=1, device=torch.device("cpu")))


def check(accumulator):
    averages, by_class = accumulator.averages(), accumulator.by_class()
    assert averages["loss"] == pytest.approx(2.0)
    assert averages["removed"] == pytest.approx(15 / 200)
    assert averages["precision"] == pytest.approx(6 / 15)
    assert averages["accuracy"] == pytest.approx(6 / 40)
    assert by_class.keys() == {"removed", "precision"}
    assert by_class["removed"] == pytest.approx([11 / 120, 4 / 60])
    assert by_class["precision"] == pytest.approx([6 / 11, 0])


def test_means_and_exact_shares():
    accumulator = alone()
    assert accumulator.averages() == accumulator.by_class() == {}
    for values in STEPS:
        accumulator.add(values)
    check(accumulator)
    again = alone()
    again.load(accumulator.state())
    assert again.averages() == accumulator.averages()
    assert again.by_class() == accumulator.by_class()
    accumulator.reset()
    assert accumulator.state() == {}


def test_a_share_of_nothing_is_left_out():
    accumulator = alone()
    accumulator.add(step(1.0, [0, 0, 0], [0, 0, 0]))
    assert "precision" not in accumulator.averages()
    assert accumulator.by_class()["precision"] == [None, None]


def tallied(distributed):
    accumulator = MetricAccumulator(distributed)
    accumulator.add(STEPS[distributed.rank])
    check(accumulator)
    return accumulator.state()


def test_processes_add_up():
    first, second = run_in_processes(tallied, 2)
    assert first == second
