from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.processes import run_in_processes
from vidcsl.distributed import DistributedContext
from vidcsl.robustness.corruption_table import (
    condition,
    conditions,
    corruption_table,
    finished_videos,
)
from vidcsl.robustness.corruptions import corrupt, names
from vidcsl.robustness.targets import Clips
from vidcsl.run_folder import ResultCache

NAMES = ["P/gaussian_noise", "C/contrast", "V/nal_loss"]
VIDEOS, BATCH = 7, 3
ALONE = DistributedContext(rank=0, size=1, device=torch.device("cpu"))


class Brightest(torch.nn.Module):
    """Names the channel with the largest mean; counts the clips that it sees."""

    seen = 0

    def forward(self, clips):
        self.seen += len(clips)
        return clips.mean((2, 3, 4))


def batches(rank=0, size=1, skip=()):
    generator = torch.Generator().manual_seed(0)
    clips = torch.rand(VIDEOS, 3, 4, 24, 24, generator=generator) * 0.1 + 0.4
    labels = torch.arange(VIDEOS) % 3
    for start in list(range(0, VIDEOS, BATCH))[rank::size]:
        rows = range(start, min(start + BATCH, VIDEOS))
        if not set(rows) <= set(skip):
            some = slice(rows.start, rows.stop)
            yield Clips(clips[some], labels[some], [10 + i for i in rows], list(rows))


def naive(name, severity):
    right = []
    for batch in batches():
        for clip, label, seed in zip(batch.clips, batch.labels, batch.seeds, strict=True):
            corrupted = corrupt(clip[None], name, severity=severity, seeds=[seed])
            right.append(int(corrupted.mean((2, 3, 4)).argmax()) == int(label))
    return right


def test_it_is_a_count_of_right_answers_clip_by_clip():
    table = corruption_table(Brightest(), batches(), NAMES, distributed=ALONE)
    accuracies = table.accuracies()
    assert set(accuracies) == {"P", "C", "V"}
    for name in NAMES:
        suite, _, bare = name.partition("/")
        for severity in (1, 4):
            right = naive(name, severity)
            assert table.correct(name)[:, severity - 1].tolist() == right
            assert accuracies[suite][bare][severity - 1] == pytest.approx(np.mean(right))
    assert table.correct_when_clean().tolist() == naive("P/jpeg", 0)
    assert set(table.repeated()) <= {"V/nal_loss"}


def _in_two(distributed, folder):
    result_cache = ResultCache(folder, settings={"a": 1}, rank=distributed.rank)
    mine = batches(distributed.rank, distributed.size)
    table = corruption_table(
        Brightest(), mine, NAMES, distributed=distributed, result_cache=result_cache
    )
    return table.predictions


def test_two_processes_answer_as_one(tmp_path):
    alone = corruption_table(Brightest(), batches(), NAMES, distributed=ALONE).predictions
    assert run_in_processes(_in_two, 2, tmp_path) == [alone, alone]


def test_a_stopped_run_asks_only_what_is_missing(tmp_path):
    whole = corruption_table(Brightest(), batches(), NAMES, distributed=ALONE)
    conditions_each = 1 + 5 * len(NAMES)

    class Stops(Brightest):
        def forward(self, clips):
            if self.seen >= BATCH * conditions_each + 2 * BATCH:  # in the second batch
                raise KeyboardInterrupt
            return super().forward(clips)

    with pytest.raises(KeyboardInterrupt):
        corruption_table(
            Stops(),
            batches(),
            NAMES,
            distributed=ALONE,
            result_cache=ResultCache(tmp_path, settings={}),
        )
    result_cache = ResultCache(tmp_path, settings={})
    done = finished_videos(result_cache, NAMES)
    assert done == set(range(BATCH))
    model = Brightest()
    table = corruption_table(
        model, batches(skip=done), NAMES, distributed=ALONE, result_cache=result_cache
    )
    assert table.predictions == whole.predictions
    assert model.seen == VIDEOS * conditions_each - BATCH * conditions_each - 2 * BATCH


def test_a_batch_of_which_some_are_known_is_asked(tmp_path):
    whole = corruption_table(Brightest(), batches(), NAMES[:1], distributed=ALONE)
    result_cache = ResultCache(tmp_path, settings={})
    for key, answers in whole.predictions.items():
        result_cache.record(key, [0], [answers[0]])
    table = corruption_table(
        Brightest(), batches(), NAMES[:1], distributed=ALONE, result_cache=result_cache
    )
    assert table.predictions == whole.predictions


def test_one_more_corruption_costs_only_itself(tmp_path):
    result_cache = ResultCache(tmp_path, settings={})
    corruption_table(
        Brightest(), batches(), NAMES[:1], distributed=ALONE, result_cache=result_cache
    )
    model = Brightest()
    corruption_table(model, batches(), NAMES[:2], distributed=ALONE, result_cache=result_cache)
    assert model.seen == 5 * VIDEOS


def test_videos_without_all_answers_are_left_out():
    table = corruption_table(Brightest(), batches(), NAMES[:1], distributed=ALONE).over([0, 2, 99])
    assert table.videos == [0, 2]
    assert table.correct(NAMES[0]).shape == (2, 5)


def test_videos_that_lack_one_answer_are_left_out_of_all():
    table = corruption_table(Brightest(), batches(), NAMES[:1], distributed=ALONE)
    last = condition(NAMES[0], 5)
    some = {**table.predictions, last: {v: a for v, a in table.predictions[last].items() if v != 2}}
    assert replace(table, predictions=some).over([0, 2, 4]).videos == [0, 4]


def test_conditions_tell_strengths_apart():
    keys = [key for key, _, _ in conditions(names())]
    assert len(set(keys)) == len(keys) == 1 + 5 * len(names())
    assert condition("P/jpeg", 2) == 'P/jpeg 2 {"quality": 18}'
