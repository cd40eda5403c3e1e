import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from vidcsl.evaluation.features import Features
from vidcsl.evaluation.progress import score_features, shared_neighbours, worded
from vidcsl.teachers.neighbours import Teacher

COUNT, CLASSES = 48, 3


def made(values, *, labels=None, groups=None):
    ids = torch.arange(len(values))
    labels = ids % CLASSES if labels is None else labels
    return Features(values, labels, ids if groups is None else groups, ids)


def random_values(seed=0):
    return torch.randn(COUNT, 2, 8, generator=torch.Generator().manual_seed(seed))


def test_classes_that_stand_apart_are_told_from_noise():
    noise = random_values()
    apart = 0.1 * noise + F.one_hot(torch.arange(COUNT) % CLASSES, 8)[:, None]
    found, blind = (score_features(made(v), classes=CLASSES, seed=0) for v in (apart, noise))
    assert found["knn_top1"] == found["probe_top1"] == 1
    assert blind["knn_top1"] < 0.7
    assert blind["probe_top1"] < 0.7


def test_knn_against_loops_without_the_videos_own_source():
    values, groups = random_values(), torch.arange(COUNT) // 4
    features = made(values, groups=groups)
    unit = [F.normalize(F.normalize(v, dim=1).mean(dim=0), dim=0) for v in values]
    correct = 0
    for video in range(COUNT):
        others = [k for k in range(COUNT) if groups[k] != groups[video]]
        near = sorted(others, key=lambda k: -float(unit[video] @ unit[k]))[:10]
        votes = [0.0] * CLASSES
        for k in near:
            votes[k % CLASSES] += math.exp(float(unit[video] @ unit[k]) / 0.07)
        correct += votes.index(max(votes)) == video % CLASSES
    scores = score_features(features, classes=CLASSES, seed=0)
    assert scores["knn_top1"] == pytest.approx(correct / COUNT)


def test_clips_of_one_source_do_not_answer_for_each_other():
    # Two clips of each source are the same, and that says nothing of the class.
    values = random_values()[: COUNT // 2].repeat_interleave(2, dim=0)
    sources = torch.arange(COUNT) // 2
    features = made(values, labels=sources % CLASSES, groups=sources)
    assert score_features(features, classes=CLASSES, seed=0)["knn_top1"] < 0.7


def test_without_labels_there_are_the_scores_that_need_none():
    unlabelled = made(random_values(), labels=torch.full((COUNT,), -1))
    scores = score_features(unlabelled, classes=0, seed=0)
    assert set(scores) == {"rankme", "lidar", "alignment", "uniformity"}
    assert worded(scores, chance=0.0).startswith("RankMe")


def test_agreement_with_a_teacher():
    values = random_values()
    pooled = made(values).pooled()
    same = Teacher("same", pooled.numpy().astype(np.float16))
    scores = score_features(made(values), classes=CLASSES, seed=0, teacher=same)
    assert scores["teacher_agreement"] > 0.95  # float16 may swap two neighbours
    other = made(random_values(1)).pooled()
    blind = shared_neighbours(pooled @ pooled.T, other @ other.T)
    assert 0.05 < blind < 0.45  # 10 of 47 by chance
    line = worded(scores, chance=1 / 3)
    assert "kNN" in line
    assert "(chance 33%)" in line
    assert "teacher's neighbours" in line


def test_videos_that_the_teacher_does_not_know_are_left_out():
    values = random_values()
    vectors = made(values).pooled().numpy().astype(np.float16)
    vectors[::4] = 0
    scores = score_features(made(values), classes=CLASSES, seed=0, teacher=Teacher("part", vectors))
    assert scores["teacher_agreement"] > 0.95
