"""Precision and recall against loops over all pairs."""

from pathlib import Path

import numpy as np
import pytest
import torch

from vidcsl.data.lists import Video, VideoList
from vidcsl.teachers import quality
from vidcsl.teachers.neighbours import Teacher, thresholds
from vidcsl.teachers.quality import SHARES, measure

COUNT = 30


def made(*, labelled: bool = True) -> tuple[Teacher, VideoList]:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 3, COUNT)
    vectors = np.eye(3, 8)[labels] + 0.5 * generator.standard_normal((COUNT, 8))
    vectors[4] = 0
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-9)
    videos = tuple(
        Video(Path(f"v{k}.mp4"), int(label) if labelled and k != 9 else -1, k // 2)
        for k, label in enumerate(labels)
    )
    classes = ("a", "b", "c") if labelled else ()
    return Teacher("made", vectors.astype(np.float16)), VideoList(videos, classes, "made.csv")


@pytest.mark.parametrize("block", [256, 7])
def test_equals_loops(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(quality, "_BLOCK", block)
    teacher, videos = made()
    least = thresholds(teacher, rule="share", share=0.2) - 1e-3  # no pair is on the edge
    found = measure(teacher, least, videos, agreement="both")
    vectors = teacher.vectors.astype(np.float32)
    total = labelled = flagged = judged = right = false = 0
    nearest = {each: [0, 0] for each in SHARES}
    for i, anchor in enumerate(videos.videos):
        ranking = []
        for j, other in enumerate(videos.videos):
            if i == j or anchor.group == other.group:
                continue
            known = anchor.label >= 0 and other.label >= 0
            same = known and anchor.label == other.label
            similarity = float(vectors[i] @ vectors[j])
            passes = similarity >= max(least[i], least[j])
            total, labelled, flagged = total + 1, labelled + known, flagged + passes
            judged, right = judged + (passes and known), right + (passes and same)
            false += same
            if 4 not in (i, j):
                ranking.append((similarity, known, same))
        ranking.sort(key=lambda entry: -entry[0])
        candidates = COUNT - 2
        for each, sums in nearest.items():
            for _, known, same in ranking[: max(1, round(each * candidates))]:
                sums[0] += known
                sums[1] += same
    assert found.flagged == pytest.approx(flagged / total)
    assert found.chance == pytest.approx(false / labelled)  # as the precision, of labelled pairs
    assert found.precision == pytest.approx(right / judged)
    assert found.recall == pytest.approx(right / false)
    for each, precision, recall in found.curve:
        assert precision == pytest.approx(nearest[each][1] / nearest[each][0])
        assert recall == pytest.approx(nearest[each][1] / false)
    assert sum(found.counts.values()) == flagged
    assert {right for *_, right in found.examples} == {True, False}


def test_without_labels_there_is_no_precision_but_pairs_to_look_at() -> None:
    teacher, videos = made(labelled=False)
    least = thresholds(teacher, rule="share", share=0.2)
    found = measure(teacher, least, videos, agreement="anchor", examples=4)
    assert found.precision is None
    assert found.chance is None
    assert not found.curve
    assert len(found.examples) == 4


def test_a_video_is_in_one_example_of_a_kind() -> None:
    teacher, videos = made()
    found = measure(teacher, torch.full((COUNT,), -2.0), videos, agreement="anchor", examples=5)
    for kind in (True, False):
        shown = [
            number
            for one, other, _, right in found.examples
            if right is kind
            for number in (one, other)
        ]
        assert len(shown) == len(set(shown)) == 10


def test_pairs_that_chance_explains_are_expected_to_be_wrong() -> None:
    generator = np.random.default_rng(1)
    noise = generator.standard_normal((200, 30))
    classes = 3 * np.eye(10, 30)[np.arange(200) % 10] + 0.3 * noise
    expected = {}
    for name, vectors in (("noise", noise), ("classes", classes)):
        units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        teacher = Teacher(name, units.astype(np.float16))
        rows = tuple(Video(Path(f"v{k}.mp4"), -1, -1) for k in range(200))
        least = thresholds(teacher, rule="share", share=0.08)
        found = measure(
            teacher, least, VideoList(rows, (), "made.csv"), agreement="anchor", examples=0
        )
        assert len(found.expected_wrong) == 200
        expected[name] = np.mean(list(found.expected_wrong.values()))
    assert expected["noise"] > 0.7
    assert expected["classes"] < 0.05


def test_a_video_that_flags_none_has_no_expectation() -> None:
    teacher, videos = made()
    found = measure(teacher, torch.full((COUNT,), torch.inf), videos, agreement="both")
    assert found.expected_wrong == {}
