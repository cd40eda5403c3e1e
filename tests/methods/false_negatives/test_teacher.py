"""The detector of a teacher against loops; labels are not read, groups are always added."""

import math

import numpy as np
import pytest
import torch

from tests.processes import run_in_processes
from vidcsl.methods.false_negatives import Samples, TeacherNeighbours
from vidcsl.teachers.neighbours import Teacher, thresholds

VIDEOS, DIM = 40, 12


def teacher(silent: int | None = 7) -> Teacher:
    """Five classes, video v of class v % 5; of one video nothing is known."""
    generator = np.random.default_rng(0)
    vectors = np.eye(5, DIM)[np.arange(VIDEOS) % 5]
    vectors = vectors + 0.15 * generator.standard_normal((VIDEOS, DIM))
    if silent is not None:
        vectors[silent] = 0
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-9)
    return Teacher("made", (vectors / lengths).astype(np.float16))


def samples(videos: list[int], *, groups: list[int] | None = None, views: int = 2) -> Samples:
    ids = torch.tensor(videos).repeat_interleave(views)
    of_group = torch.tensor(groups or [-1] * len(videos)).repeat_interleave(views)
    view = torch.arange(views).repeat(len(videos))
    return Samples(ids, of_group, torch.full_like(ids, -1), view)


def flags(detector: TeacherNeighbours, anchors: Samples, candidates: Samples) -> torch.Tensor:
    negatives = ~anchors.same(candidates, "videos")
    nothing = torch.full(negatives.shape, math.nan)  # no embedding is looked at
    found = detector(nothing, negatives, anchors, candidates, 0.0)
    same, sure = detector.flagged_and_sure(nothing, negatives, anchors, candidates, 0.0)
    assert torch.equal(found, same)
    assert not (sure & ~found).any()
    return found


def surest(detector: TeacherNeighbours, anchors: Samples, candidates: Samples) -> torch.Tensor:
    negatives = ~anchors.same(candidates, "videos")
    nothing = torch.full(negatives.shape, math.nan)
    return detector.flagged_and_sure(nothing, negatives, anchors, candidates, 0.0)[1]


def test_a_batch_is_compared_once_a_step() -> None:
    detector = TeacherNeighbours(treatment="attract_sure")
    detector.attach(teacher())
    each = samples(list(range(8)))
    with torch.profiler.profile() as profile:
        surest(detector, each, each)
    assert sum(event.count for event in profile.key_averages() if event.key == "aten::mm") == 1


@pytest.mark.parametrize("treatment", ["eliminate", "attract"])
@pytest.mark.parametrize("rule", ["auto", "share", "mutual"])
def test_pairs_equal_loops(rule: str, treatment: str) -> None:
    known = teacher()
    detector = TeacherNeighbours(
        rule=rule, ceiling=0.15, false_discovery_rate=0.4, treatment=treatment
    )
    detector.attach(known)
    rate = 0.016 if treatment == "attract" else 0.4
    least = thresholds(known, rule=rule, share=0.15, rate=rate) - 1e-4
    anchors, candidates = samples([3, 7, 12, 38, 20]), samples([8, 13, 7, 0, 33, 25, 3])
    found = flags(detector, anchors, candidates)
    assert found.any()
    vectors = known.vectors.astype(np.float64)
    for row, anchor in enumerate(anchors.videos.tolist()):
        for column, candidate in enumerate(candidates.videos.tolist()):
            similarity = float(vectors[anchor] @ vectors[candidate])
            passes = [similarity >= least[anchor], similarity >= least[candidate]]
            alike = passes[0] if rule == "share" else all(passes)
            expected = alike and 7 not in (anchor, candidate) and anchor != candidate
            assert found[row, column] == expected, (anchor, candidate)


@pytest.mark.parametrize("rule", ["auto", "share", "mutual"])
def test_the_surest_pairs_are_mutual_and_among_the_flagged(rule: str) -> None:
    known = teacher()
    options = {"rule": rule, "ceiling": 0.5, "false_discovery_rate": 0.5}
    wide = TeacherNeighbours(**options)
    split = TeacherNeighbours(**options, treatment="attract_sure")
    # The definition: a fifth of the ceiling, or a 25th of the rate, and each finds the other.
    core = TeacherNeighbours(
        rule="mutual" if rule != "auto" else "auto",
        ceiling=0.1,
        false_discovery_rate=0.5,
        treatment="attract",
    )
    everything = samples(list(range(VIDEOS)), views=1)
    for detector in (wide, split, core):
        detector.attach(known)
    found = flags(split, everything, everything)
    assert torch.equal(found, flags(wide, everything, everything))
    sure = surest(split, everything, everything)
    assert torch.equal(sure, flags(core, everything, everything) & found)
    assert 0 < sure.sum() < found.sum()
    assert torch.equal(surest(wide, everything, everything), found)


def test_each_videos_nearest_of_the_whole_list_are_flagged() -> None:
    known = teacher(silent=None)
    detector = TeacherNeighbours(rule="share", ceiling=0.2)
    detector.attach(known)
    everything = samples(list(range(VIDEOS)), views=1)
    similarities = torch.from_numpy(known.vectors.astype(np.float32))
    similarities = (similarities @ similarities.T).fill_diagonal_(-1)
    expected = torch.zeros(VIDEOS, VIDEOS, dtype=torch.bool)
    expected.scatter_(1, similarities.topk(round(0.2 * (VIDEOS - 1))).indices, True)
    assert torch.equal(flags(detector, everything, everything), expected)


def test_clips_of_one_source_are_flagged_whatever_the_teacher_says() -> None:
    detector = TeacherNeighbours(rule="share", ceiling=0.01)
    detector.attach(teacher())
    videos, groups = [0, 1, 7, 8], [5, 5, 6, 6]  # 0 and 1 are of two classes, of 7 nothing is known
    each = samples(videos, groups=groups, views=1)
    found = flags(detector, each, each)
    assert found[0, 1]
    assert found[1, 0]
    assert found[2, 3]
    assert found[3, 2]
    split = TeacherNeighbours(rule="share", ceiling=0.01, treatment="attract_sure")
    split.attach(teacher())
    sure = surest(split, each, each)
    assert sure[0, 1]
    assert sure[2, 3]


def test_keys_of_no_video_are_not_flagged() -> None:
    detector = TeacherNeighbours(rule="auto", false_discovery_rate=1.0)
    detector.attach(teacher())
    found = flags(detector, samples([3, 8]), samples([-1, 13]))
    assert not found[:, :2].any()
    assert found[:, 2:].all()


def test_a_checkpoint_fits_with_and_without_the_teacher() -> None:
    attached = TeacherNeighbours()
    attached.attach(teacher())
    assert not attached.state_dict()
    with pytest.raises(RuntimeError, match="attach a teacher"):
        flags(TeacherNeighbours(), samples([0]), samples([1]))


def _flags_of_process(distributed, videos: list[int]) -> torch.Tensor:
    detector = TeacherNeighbours()
    detector.attach(teacher())
    each = len(videos) // distributed.size
    mine = samples(videos[distributed.rank * each : (distributed.rank + 1) * each])
    return flags(detector, mine, mine.gathered(distributed.gather))


def test_two_processes_flag_what_one_does() -> None:
    videos = [0, 5, 7, 11, 16, 30, 31, 39]
    everything = samples(videos)
    detector = TeacherNeighbours()
    detector.attach(teacher())
    alone = flags(detector, everything, everything)
    assert alone.any()
    assert torch.equal(torch.cat(run_in_processes(_flags_of_process, 2, videos)), alone)
