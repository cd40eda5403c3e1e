import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tests.processes import PROCESSES, run_in_processes
from vidcsl.distributed import DistributedContext
from vidcsl.robustness.attack_curve import (
    Curve,
    VideoRobustness,
    attack_batch,
    attack_curve,
    frame_rms,
)
from vidcsl.robustness.attacks import PGD, attack
from vidcsl.robustness.corruption_table import corruption_table
from vidcsl.robustness.corruptions import corrupt
from vidcsl.robustness.targets import Clips, classifier
from vidcsl.robustness.threats import L2, Linf
from vidcsl.run_folder import ResultCache

EPS = {"1/255": 1 / 255, "4/255": 4 / 255, "16/255": 16 / 255}


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layer = nn.Linear(3 * 4 * 8 * 8, 3)

    def forward(self, clips):
        return self.layer(clips.flatten(1)) * 3


def data(model, dtype=torch.float32):
    """Twelve clips of which ten are right."""
    generator = torch.Generator().manual_seed(1)
    clips = torch.rand(12, 3, 4, 8, 8, generator=generator).to(dtype)
    labels = model(clips).argmax(dim=1)
    labels[:2] = (labels[:2] + 1) % 3
    return Clips(clips, labels, list(range(12)), list(range(100, 112)))


def attacks(solver, threat=Linf, budgets=EPS):
    def make(eps):
        return lambda model, clips, labels, seeds, start=None: attack(
            model, clips, labels, threat=threat(eps), solver=solver, seeds=seeds, start=start
        )

    return {key: make(eps) for key, eps in budgets.items()}


def batches(clips, size):
    return [clips.take(rows) for rows in torch.arange(len(clips)).split(size)]


def alone():
    return DistributedContext(rank=0, size=1, device=torch.device("cpu"))


def curve_of(model, clips, *, size=5, solver=None, **options):
    solver = solver or PGD(steps=3)
    found = attacks(solver)
    return attack_curve(
        classifier(model), batches(clips, size), found, distributed=alone(), **options
    )


@pytest.mark.parametrize("threat", [Linf, L2])
def test_attacking_only_robust_clips_changes_nothing(threat):
    model = Net().double().eval()
    clips = data(model, torch.float64)
    budgets = (
        {"a": 0.002, "b": 0.01, "c": 0.04} if threat is Linf else {"a": 0.05, "b": 0.4, "c": 1}
    )
    found = attacks(PGD(steps=3), threat, budgets)
    fast = attack_curve(classifier(model), batches(clips, 5), found, distributed=alone())
    # Every clip under every budget, each from what the smaller one found, none left out.
    robust, start = model(clips.clips).argmax(1) == clips.labels, None
    assert (fast.clips, fast.clean) == (12, int(robust.sum())) == (12, 10)
    for key, make in found.items():
        start = make(model, clips.clips, clips.labels, clips.seeds, start)
        robust = robust & (model(start).argmax(1) == clips.labels)
        right = [video for video, row in zip(clips.videos, robust, strict=True) if row]
        assert [v for v, o in fast.outcomes.items() if o in fast.robust(key)] == right
        assert fast.accuracy()[key] == int(robust.sum()) / 12
        assert fast.survival()[key] == int(robust.sum()) / 10
    assert 0 < fast.accuracy()["b"] < fast.accuracy()["a"]


def test_each_budget_begins_at_what_the_smaller_one_found():
    model = Net().eval()
    clips, seen = data(model), []

    def remember(model, clips, labels, seeds, start=None):
        seen.append((clips, start))
        return (clips + 0.001).clamp(0, 1)  # fools no one

    attack_batch(model, clips, {"1": remember, "2": remember})
    assert seen[0][1] is None
    assert torch.equal(seen[1][1], (seen[1][0] + 0.001).clamp(0, 1))


def test_only_robust_clips_are_attacked_and_those_robust_to_the_end_have_no_budget():
    model = Net().eval()
    clips, seen = data(model), []

    def weak(model, clips, labels, seeds, start=None):
        seen.append((labels.tolist(), list(seeds)))
        return (clips + 0.001).clamp(0, 1)

    found = attack_batch(model, clips, {"1": weak, "2": weak})
    right = [outcome for outcome in found if outcome.clean == outcome.label]
    assert len(right) == 10
    assert {(outcome.fooled_at, outcome.became) for outcome in found} == {(None, None)}
    assert seen == [(clips.labels[2:].tolist(), clips.seeds[2:])] * 2


def outcomes():
    return {
        4: VideoRobustness(0, 0, "1", 1, [1.0, 1.0]),
        5: VideoRobustness(0, 0, "2", 2, [0.0, 2.0, 4.0]),
        6: VideoRobustness(1, 2),
        7: VideoRobustness(1, 1, None, None, [2.0, 2.0]),
        8: VideoRobustness(0, 0, "1", 1, [3.0, 0.0]),
    }


def test_numbers_that_follow_from_outcomes():
    curve = Curve(["1", "2"], outcomes())
    assert (curve.clips, curve.clean) == (5, 4)
    assert curve.accuracy() == {"1": 0.4, "2": 0.2}
    assert curve.survival() == {"1": 0.5, "2": 0.25}
    assert curve.by_class(3) == {
        "clips": [3, 2, 0],
        "clean": [3, 1, 0],
        "1": [1, 1, 0],
        "2": [0, 1, 0],
        "mistaken_for": [1, -1, -1],
    }
    assert curve.frame_rms() == {"1": [2.0, 0.5], "2": [1.0, 3.0]}
    assert curve.over([6, 5]).accuracy() == {"1": 0.5, "2": 0.0}
    assert Curve(["1"], {6: VideoRobustness(1, 2)}).survival() == {}


def test_of_classes_predicted_equally_often_the_smaller_one_is_given():
    for order in ((1, 2), (2, 1)):
        fooled = {video: VideoRobustness(0, 0, "1", became) for video, became in enumerate(order)}
        assert Curve(["1"], fooled).by_class(3)["mistaken_for"] == [1, -1, -1]


def test_seconds_are_those_of_all_videos():
    some = {video: replace(found, seconds=0.5) for video, found in outcomes().items()}
    assert Curve(["1", "2"], some).seconds() == 2.5


def test_a_perturbation_is_measured_frame_by_frame():
    clean = torch.rand(2, 3, 4, 5, 6, dtype=torch.float64)
    other = clean + torch.linspace(0, 1, 4).view(1, 1, 4, 1, 1) / 255
    other[0, :, 1] = clean[0, :, 1]
    expected = torch.linspace(0, 1, 4, dtype=torch.float64).repeat(2, 1)
    expected[0, 1] = 0
    torch.testing.assert_close(frame_rms(clean, other), expected, atol=1e-6, rtol=1e-6)
    uneven = clean + torch.randn_like(clean)
    naive = [
        [float((u - c).square().mean().sqrt()) for u, c in zip(*both, strict=True)]
        for both in zip(uneven.transpose(1, 2), clean.transpose(1, 2), strict=True)
    ]
    torch.testing.assert_close(frame_rms(clean, uneven), 255 * torch.tensor(naive).double())
    model = Net().eval()
    found = curve_of(model, data(model)).outcomes.values()
    assert all(0 < max(o.frame_rms) <= 16.001 for o in found if o.clean == o.label)
    assert all(o.frame_rms == [] for o in found if o.clean != o.label)


def test_a_run_goes_on_where_it_stopped(tmp_path):
    model = Net().eval()
    clips, whole = data(model), curve_of(Net().eval(), data(Net().eval()))
    result_cache = ResultCache(tmp_path, settings={})

    class Stop(Exception):
        pass

    def stop(_):
        raise Stop

    with pytest.raises(Stop):
        curve_of(model, clips, result_cache=result_cache, advance=stop)
    assert len(result_cache.results("attack")) == 5  # the batch that was done when it stopped
    asked = []
    hook = model.register_forward_hook(lambda _, inputs, __: asked.append(len(inputs[0])))
    again = ResultCache(tmp_path, settings={})
    assert curve_of(model, clips, result_cache=again) == whole
    hook.remove()
    assert asked[0] == 5  # the second batch
    asked.clear()
    assert curve_of(model, clips, result_cache=ResultCache(tmp_path, settings={})) == whole
    assert asked == []


def slow_run(folder):
    model, result_cache = Net().eval(), ResultCache(folder, settings={})
    curve_of(
        model, data(model), size=1, result_cache=result_cache, advance=lambda _: time.sleep(0.1)
    )


def test_killed_at_any_moment_it_gives_the_same_numbers(tmp_path):
    for lines in (2, 6):
        process = PROCESSES.Process(target=slow_run, args=(tmp_path,))
        process.start()
        while process.is_alive() and _lines(tmp_path) < lines:
            time.sleep(0.01)
        process.kill()
        process.join()
    model = Net().eval()
    result_cache = ResultCache(tmp_path, settings={})
    assert 1 <= len(result_cache.results("attack")) < 12
    mixed = curve_of(model, data(model), size=1, result_cache=result_cache)
    assert mixed == curve_of(model, data(model), size=1)


def _lines(folder: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in folder.glob("*.jsonl"))


def test_corruption_table_against_a_plain_loop():
    model = Net().eval()
    clips, names = data(model), ["P/gaussian_noise", "C/contrast"]
    table = corruption_table(model, batches(clips, 5), names, distributed=alone())
    assert table.correct_when_clean().tolist().count(True) == 10
    assert len(table.videos) == 12
    for name in names:
        for severity, accuracy in enumerate(table.correct(name).mean(axis=0), start=1):
            corrupted = corrupt(clips.clips, name, severity=severity, seeds=clips.seeds)
            correct = (model(corrupted).argmax(1) == clips.labels).float().mean()
            assert accuracy == pytest.approx(float(correct))


def shared(distributed):
    model = Net().eval()
    mine = batches(data(model), 12 // distributed.size)[distributed.rank :: distributed.size]
    curve = attack_curve(classifier(model), mine, attacks(PGD(steps=3)), distributed=distributed)
    table = corruption_table(model, mine, ["P/gaussian_noise"], distributed=distributed)
    return replace(curve, outcomes=dict(curve.outcomes)), table


def test_two_processes_count_what_one_counts():
    single = shared(alone())
    assert run_in_processes(shared, 2) == [single, single]
    assert np.sum(list(single[0].accuracy().values())) > 0
