import pytest
import torch

from tests.processes import run_in_processes
from vidcsl.distributed import DistributedContext
from vidcsl.methods.metrics import Ratio
from vidcsl.training.train import MetricAccumulator


def step(loss, flagged, correct):
    """One step with anchors of two classes, and some of none."""
    flagged, correct = torch.tensor(flagged), torch.tensor(correct)
    return {
        "loss": torch.tensor(loss),
        "flagged": Ratio(flagged, torch.tensor([60, 30, 10])),
        "precision": Ratio(correct, flagged),
        "accuracy": Ratio(correct.sum(), torch.tensor(20)),
    }


STEPS = [step(1.0, [6, 4, 0], [5, 0, 0]), step(3.0, [5, 0, 0], [1, 0, 0])]


def alone():
    return MetricAccumulator(DistributedContext(rank=0, size=1, device=torch.device("cpu")))


def check(accumulator):
    averages, by_class = accumulator.averages(), accumulator.by_class()
    assert averages["loss"] == pytest.approx(2.0)
    assert averages["flagged"] == pytest.approx(15 / 200)
    assert averages["precision"] == pytest.approx(6 / 15)
    assert averages["accuracy"] == pytest.approx(6 / 40)
    assert by_class.keys() == {"flagged", "precision"}
    assert by_class["flagged"] == pytest.approx([11 / 120, 4 / 60])
    assert by_class["precision"] == pytest.approx([6 / 11, 0])


def test_scalars_are_averaged_and_ratios_are_summed_in_both_parts():
    accumulator = alone()
    assert accumulator.averages() == accumulator.by_class() == {}
    for values in STEPS:
        accumulator.add(values)
    check(accumulator)
    again = alone()
    again.load_state_dict(accumulator.state_dict())
    assert again.averages() == accumulator.averages()
    assert again.by_class() == accumulator.by_class()
    accumulator.reset()
    assert accumulator.state_dict() == {}


def test_a_ratio_without_a_whole_is_left_out():
    accumulator = alone()
    accumulator.add(step(1.0, [0, 0, 0], [0, 0, 0]))
    assert "precision" not in accumulator.averages()
    assert accumulator.by_class()["precision"] == [None, None]


def accumulated(distributed):
    accumulator = MetricAccumulator(distributed)
    accumulator.add(STEPS[distributed.rank])
    check(accumulator)
    return accumulator.state_dict()


def test_two_processes_give_the_sums_of_both():
    first, second = run_in_processes(accumulated, 2)
    assert first == second
