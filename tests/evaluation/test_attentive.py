import pytest
import torch

from tests.models.test_encoders import clips_for, slim
from vidcsl.evaluation.features import Features
from vidcsl.evaluation.probes import (
    DECAYS,
    RATES,
    AttentivePool,
    AttentiveProbe,
    PooledTokens,
    _attentive_fit,
    fit_attentive_probe,
    folds_of,
)


def tokens(videos=60, *, classes=3, seed=0, random_labels=False):
    """Clips of eight tokens, one of which, at a place of its own, tells the class."""
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
def test_it_finds_the_token_that_tells_and_nothing_in_random_labels(random, epochs, low, high):
    train, test = tokens(60, random_labels=random), tokens(40, seed=1, random_labels=random)
    probe = fit_attentive_probe(train, dim=16, classes=3, epochs=epochs, seed=0)
    right = (probe.logits(test.values).argmax(dim=2) == test.labels[:, None]).float().mean()
    assert low <= right <= high


def test_the_best_on_a_held_out_fold_learns_again_from_all():
    train = tokens(30, seed=4, random_labels=True)
    held = folds_of(train.groups, seed=2) == 0
    settings = [(rate, decay) for rate in RATES for decay in DECAYS]
    options = {"dim": 16, "classes": 3, "epochs": 20, "seed": 2}
    learnt = _attentive_fit(train.values[~held], train.labels[~held], settings, **options)
    scores = [
        (train.labels[held] == AttentiveProbe(pool, 0, 0, 0).logits(train.values[held]).argmax(2).T)
        .float()
        .mean()
        for pool in learnt
    ]
    probe = fit_attentive_probe(train, **options)
    assert probe.held_out_top1 == max(scores)
    assert (probe.learning_rate, probe.weight_decay) == settings[scores.index(max(scores))]
    (whole,) = _attentive_fit(
        train.values, train.labels, [settings[scores.index(max(scores))]], **options
    )
    wanted = AttentiveProbe(whole, 0, 0, 0).logits(train.values)
    torch.testing.assert_close(probe.logits(train.values), wanted)


def test_tokens_are_normed():
    pool, tokens_ = AttentivePool(16, 3), torch.randn(2, 5, 16)
    torch.testing.assert_close(pool(3 * tokens_ + 1), pool(tokens_), atol=1e-4, rtol=1e-4)


def test_the_seed_decides():
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
