import math
from itertools import product

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch.nn.functional import cross_entropy

from tests.models.made import clips_for, slim
from vidcsl.errors import UserError
from vidcsl.evaluation.features import Features
from vidcsl.evaluation.probes import (
    DECAYS,
    PENALTIES,
    RATES,
    TOLERANCE,
    AttentivePool,
    AttentiveProbe,
    PooledTokens,
    can_hold_out,
    draw_videos,
    fit_attentive_pools,
    fit_attentive_probe,
    fit_linear_probe,
    folds_of,
    logistic_regression,
    low_shot_accuracy,
    sources_of,
    spread_views,
    video_accuracy,
)

# The linear probe.


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


def test_a_linear_probe_separates_separable_features():
    data = features()
    assert accuracy(fit_linear_probe(data, classes=4, seed=0), data) == 1


def test_random_labels_stay_near_chance_on_new_videos():
    data = features(videos=300, spread=1.0, random_labels=True)
    train = Features(*(each[:200] for each in vars(data).values()))
    test = Features(*(each[200:] for each in vars(data).values()))
    assert accuracy(fit_linear_probe(train, classes=4, seed=0), test) < 0.42


def test_logistic_regression_agrees_with_scikit_learn():
    data = features(spread=1.0)
    x, y = data.values[:, 0], data.labels
    weight, bias = logistic_regression(x, y, classes=4, penalty=0.01)
    theirs = LogisticRegression(C=1 / (2 * 0.01 * len(x)), tol=1e-8, max_iter=1000).fit(x, y)
    ours = (x @ weight.T + bias).softmax(dim=1)
    wanted = torch.from_numpy(theirs.predict_proba(x)).float()
    torch.testing.assert_close(ours, wanted, atol=2e-3, rtol=0)


def correlated(*, seed=0, videos=120):
    """Features of which a few directions hold most of the variance, as an encoder's do."""
    data = features(videos=videos, spread=1.4, seed=seed, dim=24)
    generator = torch.Generator().manual_seed(seed + 9)
    turn = torch.linalg.qr(torch.randn(24, 24, generator=generator))[0]
    values = (data.values * torch.logspace(0, -1.5, 24)) @ turn + 3
    return Features(values, data.labels, data.groups, data.indices)


@pytest.mark.parametrize("penalty", PENALTIES)
def test_every_penalty_is_fitted_to_its_end(penalty):
    # Weak penalties were cut off after 15 steps: losses of .236 instead of .214.
    data = correlated()
    x, y = data.values.flatten(0, 1), data.labels.repeat_interleave(2)
    x = (x - x.mean(0)) / x.std(0)
    solver = LogisticRegression(C=1 / (2 * penalty * len(x)), tol=1e-10, max_iter=10_000)
    theirs = solver.fit(x.double(), y)

    def loss(weight, bias):
        logits = x.double() @ weight.double().T + bias.double()
        return float(cross_entropy(logits, y) + penalty * weight.double().square().sum())

    ours = logistic_regression(x, y, classes=4, penalty=penalty)
    least = loss(torch.from_numpy(theirs.coef_), torch.from_numpy(theirs.intercept_))
    assert loss(*ours) <= least * (1 + TOLERANCE)
    predicted = (x @ ours[0].T + ours[1]).argmax(dim=1)
    assert (predicted.numpy() == theirs.predict(x.double())).mean() > 0.995


@pytest.mark.parametrize("penalty", PENALTIES)
def test_curvature_of_some_rows_leads_to_the_same_end(penalty):
    data = correlated(videos=400)
    x, y = data.values.flatten(0, 1), data.labels.repeat_interleave(2)
    x = (x - x.mean(0)) / x.std(0)

    def loss(weight, bias):
        logits = x.double() @ weight.double().T + bias.double()
        return float(cross_entropy(logits, y) + penalty * weight.double().square().sum())

    whole = logistic_regression(x, y, classes=4, penalty=penalty)
    part = logistic_regression(x, y, classes=4, penalty=penalty, every=3)
    gained = min(loss(*whole), math.log(4) - loss(*whole))
    assert loss(*part) <= loss(*whole) + TOLERANCE * gained


@pytest.mark.parametrize("seed", [0, 1])
def test_the_whole_probe_agrees_with_scikit_learn(seed):
    data = correlated(seed=seed)
    penalties = (1e-5, 1e-3, 3e-2, 1.0)
    flat = data.values.flatten(0, 1)
    x, y = ((flat - flat.mean(0)) / flat.std(0)).numpy(), data.labels.repeat_interleave(2).numpy()
    folds = folds_of(data.groups, seed=seed).repeat_interleave(2).numpy()

    def fit(penalty, rows):
        solver = LogisticRegression(C=1 / (2 * penalty * rows.sum()), tol=1e-8, max_iter=5000)
        return solver.fit(x[rows].astype(float), y[rows])

    clips, videos = np.zeros((2, 5, len(penalties)))  # predicted correctly
    for k, (column, penalty) in product(range(5), enumerate(penalties)):
        held = folds == k
        chances = fit(penalty, ~held).predict_proba(x[held])
        clips[k, column] = (chances.argmax(axis=1) == y[held]).sum()
        of_videos = chances.reshape(-1, 2, 4).mean(axis=1).argmax(axis=1)
        videos[k, column] = (of_videos == y[held][::2]).sum()
    best = penalties[clips.sum(axis=0).argmax()]
    others = [np.delete(clips, k, axis=0).sum(axis=0).argmax() for k in range(5)]
    found = fit_linear_probe(data, classes=4, seed=seed, penalties=penalties)
    assert found.penalty == best
    # Of videos; of each fold by what the other folds choose, not the best of all penalties.
    wanted = sum(videos[k, chosen] for k, chosen in enumerate(others)) / 120
    assert found.held_out_top1 == pytest.approx(wanted, abs=1e-6)
    reference = torch.from_numpy(fit(best, folds >= 0).predict_proba(x)).float()
    torch.testing.assert_close(found.logits(flat).softmax(dim=1), reference, atol=5e-3, rtol=0)


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
    assert spread_views(views, most=3).flatten().tolist() == [0, 2, 4]
    assert torch.equal(spread_views(views, most=9), views)


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
    correct = probe.logits(data.values[labelled][:, 0]).argmax(1) == data.labels[labelled]
    assert correct.float().mean() == 1
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


# Low-shot probes.


def test_a_low_shot_subset_has_a_ratio_of_every_class_and_at_least_one_video():
    labels = torch.tensor([0] * 40 + [1] * 10 + [2] + [-1] * 9)
    rows = draw_videos(labels, 0.1, seed=0, draw=0)
    assert labels[rows].tolist() == [0, 0, 0, 0, 1, 2]
    assert not torch.equal(rows, draw_videos(labels, 0.1, seed=0, draw=1))
    assert torch.equal(rows, draw_videos(labels, 0.1, seed=0, draw=0))
    assert not torch.equal(rows, draw_videos(labels, 0.1, seed=1, draw=0))
    assert len(draw_videos(torch.zeros(19), 0.1, seed=0, draw=0)) == 2  # the nearest number to 1.9


@pytest.mark.parametrize(("ratio", "videos"), [(0.05, 4), (0.5, 40), (1.0, 80)])
def test_low_shot_accuracy_grows_with_labels_up_to_the_whole_list(ratio, videos):
    train = features(videos=80, spread=0.05)
    test = features(videos=40, spread=0.05, seed=0)
    found = low_shot_accuracy(train, test, ratio=ratio, classes=4, draws=2, seed=0)
    assert found["videos"] == videos
    assert found["top1"] == 1  # separable: one video a class is enough
    assert found["draws"] == [1, 1]


def test_a_probe_sees_the_chosen_videos_alone():
    data = features(videos=160, spread=1.5)
    train, test = (
        Features(*(part[rows] for part in data.parts)) for rows in (slice(0, 80), slice(80, 160))
    )
    found = low_shot_accuracy(train, test, ratio=0.1, classes=4, draws=2, seed=5)
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
    found = low_shot_accuracy(train, test, ratio=0.2, classes=4, draws=3, seed=0)
    assert found["top1"] < 0.42
    low, high = found["intervals"]["top1"]
    assert low < found["top1"] < high
    assert found["top1"] == pytest.approx(sum(found["draws"]) / 3)


# The attentive probe.


def tokens(videos=60, *, classes=3, seed=0, random_labels=False):
    """Clips of eight tokens, one of which, at a place of its own, shows the class."""
    generator = torch.Generator().manual_seed(seed)
    values = 0.3 * torch.randn(videos, 2, 8, 16, generator=generator)
    labels = torch.arange(videos) % classes
    place = torch.randint(0, 8, (videos, 2), generator=generator)
    for video in range(videos):
        for view in range(2):
            values[video, view, place[video, view], labels[video]] = 4.0
            values[video, view, place[video, view], 15] = 4.0  # marks where to look
    if random_labels:
        labels = labels[torch.randperm(videos, generator=generator)]
    ids = torch.arange(videos)
    return Features(values.flatten(2), labels, ids // 2, ids)


@pytest.mark.parametrize(
    ("random", "epochs", "low", "high"), [(False, 60, 0.99, 1.0), (True, 10, 0.0, 0.6)]
)
def test_the_attentive_probe_finds_the_token_that_shows_the_class(random, epochs, low, high):
    train, test = tokens(60, random_labels=random), tokens(40, seed=1, random_labels=random)
    probe = fit_attentive_probe(train, dim=16, classes=3, epochs=epochs, seed=0)
    correct = (probe.logits(test.values).argmax(dim=2) == test.labels[:, None]).float().mean()
    assert low <= correct <= high


def test_the_attentive_setting_that_is_best_on_a_held_out_fold_is_trained_again_on_all():
    train = tokens(30, seed=4, random_labels=True)
    held = folds_of(train.groups, seed=2) == 0
    settings = [(rate, decay) for rate in RATES for decay in DECAYS]
    options = {"dim": 16, "classes": 3, "epochs": 20, "seed": 2}
    learnt = fit_attentive_pools(train.values[~held], train.labels[~held], settings, **options)
    scores = [
        (train.labels[held] == AttentiveProbe(pool, 0, 0, 0).logits(train.values[held]).argmax(2).T)
        .float()
        .mean()
        for pool in learnt
    ]
    probe = fit_attentive_probe(train, **options)
    assert probe.held_out_top1 == max(scores)
    assert (probe.learning_rate, probe.weight_decay) == settings[scores.index(max(scores))]
    (whole,) = fit_attentive_pools(
        train.values, train.labels, [settings[scores.index(max(scores))]], **options
    )
    wanted = AttentiveProbe(whole, 0, 0, 0).logits(train.values)
    torch.testing.assert_close(probe.logits(train.values), wanted)


def test_attentive_pooling_normalises_tokens():
    pool, tokens_ = AttentivePool(16, 3), torch.randn(2, 5, 16)
    torch.testing.assert_close(pool(3 * tokens_ + 1), pool(tokens_), atol=1e-4, rtol=1e-4)


def test_an_attentive_probe_depends_on_its_seed_alone():
    train = tokens(30)
    one, two = (fit_attentive_probe(train, dim=16, classes=3, epochs=1, seed=3) for _ in range(2))
    assert torch.equal(one.logits(train.values), two.logits(train.values))


def test_pooled_tokens_are_averages_of_neighbours():
    encoder = slim("r3d_18")
    clips = clips_for(encoder)
    whole = encoder.tokens(clips)
    assert torch.equal(PooledTokens(encoder, most=99)(clips), whole.flatten(1))
    one = PooledTokens(encoder, most=1)(clips)
    torch.testing.assert_close(one, whole.mean(dim=1))
    torch.testing.assert_close(one, encoder(clips))
