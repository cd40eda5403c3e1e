import pytest
import torch
from sklearn.linear_model import LogisticRegression

from vidcsl.errors import UserError
from vidcsl.evaluation.features import Features
from vidcsl.evaluation.linear import _fit, fit_linear_probe, video_accuracy


def features(*, videos=60, views=2, dim=8, classes=4, spread=0.1, seed=0, random_labels=False):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(videos) % classes
    centres = torch.randn(classes, dim, generator=generator)
    values = centres[labels][:, None] + spread * torch.randn(
        videos, views, dim, generator=generator
    )
    if random_labels:
        labels = labels[torch.randperm(videos, generator=generator)]
    return Features(values, labels, torch.arange(videos) // 3, torch.arange(videos))


def accuracy(probe, test):
    return video_accuracy(probe.logits(test.values), test.labels)[0]


def test_separable_features_reach_one():
    data = features()
    assert accuracy(fit_linear_probe(data, classes=4, seed=0), data) == 1


def test_random_labels_stay_near_chance_on_new_videos():
    data = features(videos=300, spread=1.0, random_labels=True)
    train = Features(*(each[:200] for each in vars(data).values()))
    test = Features(*(each[200:] for each in vars(data).values()))
    assert accuracy(fit_linear_probe(train, classes=4, seed=0), test) < 0.42


def test_agrees_with_scikit_learn():
    data = features(spread=1.0)
    x, y = data.values[:, 0], data.labels
    weight, bias = _fit(x, y, classes=4, penalty=0.01)
    theirs = LogisticRegression(C=1 / (2 * 0.01 * len(x)), tol=1e-8, max_iter=1000).fit(x, y)
    ours = (x @ weight.T + bias).softmax(dim=1)
    wanted = torch.from_numpy(theirs.predict_proba(x)).float()
    torch.testing.assert_close(ours, wanted, atol=2e-3, rtol=0)


def test_the_probe_is_a_layer_for_raw_features_and_is_deterministic():
    data = features(spread=0.5)
    shifted = Features(data.values * 50 + 7, data.labels, data.groups, data.indices)
    one, two = (fit_linear_probe(shifted, classes=4, seed=3) for _ in range(2))
    assert torch.equal(one.weight, two.weight)
    layer = one.as_layer()
    torch.testing.assert_close(layer(shifted.values), one.logits(shifted.values))
    assert accuracy(one, shifted) > 0.9


def test_unlabelled_videos_are_left_out():
    data = features()
    some = data.labels.clone()
    some[::2] = -1
    probe = fit_linear_probe(
        Features(data.values, some, data.groups, data.indices), classes=4, seed=0
    )
    labelled = some >= 0
    right = probe.logits(data.values[labelled][:, 0]).argmax(1) == data.labels[labelled]
    assert right.float().mean() == 1
    with pytest.raises(UserError, match="two classes"):
        fit_linear_probe(
            Features(data.values, torch.full((60,), -1), data.groups, data.indices),
            classes=4,
            seed=0,
        )


def test_video_accuracy_averages_probabilities():
    logits = torch.tensor([[[4.0, 0.0], [0.0, 1.0], [0.0, 1.0]], [[0.0, 1.0]] * 3])
    video, clip = video_accuracy(logits, torch.tensor([0, 1]))
    assert video == 1
    assert clip == pytest.approx(4 / 6)
