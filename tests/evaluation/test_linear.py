import pytest
import torch
from sklearn.linear_model import LogisticRegression

from vidcsl.errors import UserError
from vidcsl.evaluation.features import Features
from vidcsl.evaluation.probes import (
    _fit,
    _spread,
    can_hold_out,
    fit_linear_probe,
    folds_of,
    sources_of,
    video_accuracy,
)


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


@pytest.mark.parametrize("seed", [0, 1])
def test_the_whole_probe_agrees_with_scikit_learn(seed):
    data = features(videos=90, spread=1.2, seed=seed)
    scales = torch.logspace(-1, 1, 8)
    data = Features(data.values * scales + 3 * scales, data.labels, data.groups, data.indices)
    penalties = (1e-4, 3e-2, 1.0)
    flat = data.values.flatten(0, 1)
    x, y = ((flat - flat.mean(0)) / flat.std(0)).numpy(), data.labels.repeat_interleave(2).numpy()
    folds = folds_of(data.groups, seed=seed).repeat_interleave(2).numpy()

    def fit(penalty, rows):
        solver = LogisticRegression(C=1 / (2 * penalty * rows.sum()), tol=1e-8, max_iter=5000)
        return solver.fit(x[rows], y[rows])

    held_out = {}
    for penalty in penalties:
        right = [
            (fit(penalty, folds != k).predict(x[folds == k]) == y[folds == k]).sum()
            for k in range(5)
        ]
        held_out[penalty] = sum(right) / len(y)
    best = max(penalties, key=lambda penalty: (held_out[penalty], penalty))
    found = fit_linear_probe(data, classes=4, seed=seed, penalties=penalties)
    assert found.penalty == best
    assert found.held_out_top1 == pytest.approx(held_out[best], abs=0.02)
    wanted = torch.from_numpy(fit(best, folds >= 0).predict_proba(x)).float()
    torch.testing.assert_close(found.logits(flat).softmax(dim=1), wanted, atol=5e-3, rtol=0)


def test_among_equal_penalties_the_strongest_is_chosen():
    assert fit_linear_probe(features(spread=0.01), classes=4, seed=0).penalty == 1


def test_sources_are_groups_and_videos_without_one():
    groups, indices = torch.tensor([3, -1, 3, -1, 5]), torch.tensor([0, 3, 1, 5, 2])
    sources = sources_of(groups, indices)
    assert sources[0] == sources[2]
    assert sorted(sources.unique().tolist()) == [0, 1, 2, 3]
    labels = torch.tensor([0, 0, 0, 1, 1])
    assert can_hold_out(sources, labels)
    assert not can_hold_out(sources, torch.tensor([0, 1, 0, 1, 1]))


def test_few_views_are_spread_over_all():
    views = torch.arange(5.0).view(1, 5, 1)
    assert _spread(views, most=3).flatten().tolist() == [0, 2, 4]
    assert torch.equal(_spread(views, most=9), views)


def test_folds_keep_sources_whole_and_follow_the_seed():
    sources = torch.arange(60) // 3
    folds = folds_of(sources, seed=0)
    assert torch.equal(folds, folds[::3].repeat_interleave(3))
    assert folds.bincount().tolist() == [12] * 5
    assert not torch.equal(folds, folds_of(sources, seed=1))


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
    # By the mean of its logits the first would be of class 0, by that of probabilities it is not.
    logits = torch.tensor([[[9.0, 0.0], [0.0, 2.0], [0.0, 2.0]], [[0.0, 1.0]] * 3])
    assert logits[0].mean(dim=0).argmax() == 0
    video, clip = video_accuracy(logits, torch.tensor([1, 1]))
    assert video == 1
    assert clip == pytest.approx(5 / 6)
