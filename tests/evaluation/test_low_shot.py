import pytest
import torch

from tests.evaluation.test_linear import features
from vidcsl.evaluation.features import Features
from vidcsl.evaluation.probes import (
    draw_videos,
    fit_linear_probe,
    low_shot_accuracy,
    video_accuracy,
)


def test_a_share_of_every_class_and_at_least_one():
    labels = torch.tensor([0] * 40 + [1] * 10 + [2] + [-1] * 9)
    rows = draw_videos(labels, 0.1, seed=0, draw=0)
    assert labels[rows].tolist() == [0, 0, 0, 0, 1, 2]
    assert not torch.equal(rows, draw_videos(labels, 0.1, seed=0, draw=1))
    assert torch.equal(rows, draw_videos(labels, 0.1, seed=0, draw=0))
    assert not torch.equal(rows, draw_videos(labels, 0.1, seed=1, draw=0))
    assert len(draw_videos(torch.zeros(19), 0.1, seed=0, draw=0)) == 2  # the nearest number to 1.9


@pytest.mark.parametrize(("share", "videos"), [(0.05, 4), (0.5, 40), (1.0, 80)])
def test_more_labels_are_worth_more_up_to_the_whole_list(share, videos):
    train = features(videos=80, spread=0.05)
    test = features(videos=40, spread=0.05, seed=0)
    found = low_shot_accuracy(train, test, share=share, classes=4, draws=2, seed=0)
    assert found["videos"] == videos
    assert found["top1"] == 1  # separable: one video a class is enough
    assert found["draws"] == [1, 1]


def test_a_probe_sees_the_chosen_videos_alone():
    data = features(videos=160, spread=1.5)
    train, test = (
        Features(*(part[rows] for part in data.parts)) for rows in (slice(0, 80), slice(80, 160))
    )
    found = low_shot_accuracy(train, test, share=0.1, classes=4, draws=2, seed=5)
    for draw, top1 in enumerate(found["draws"]):
        rows = draw_videos(train.labels, 0.1, seed=5, draw=draw)
        few = Features(*(part[rows] for part in train.parts))
        probe = fit_linear_probe(few, classes=4, seed=5)
        assert top1 == pytest.approx(video_accuracy(probe.logits(test.values), test.labels)[0])
    assert found["top1"] < 1


def test_random_labels_stay_at_chance():
    data = features(videos=300, spread=1.0, random_labels=True)
    train, test = (
        Features(*(part[rows] for part in data.parts)) for rows in (slice(0, 200), slice(200, 300))
    )
    found = low_shot_accuracy(train, test, share=0.2, classes=4, draws=3, seed=0)
    assert found["top1"] < 0.42
    low, high = found["intervals"]["top1"]
    assert low < found["top1"] < high
    assert found["top1"] == pytest.approx(sum(found["draws"]) / 3)
