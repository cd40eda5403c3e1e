import pytest
import torch

from tests.methods.made import DIM, batch, make_method
from vidcsl.errors import UserError


def published(x, y, *, weights=(25.0, 25.0, 1.0)):
    """The three terms of two views `[B, P]` by loops, from the paper's equations 1 to 6."""
    count, length = x.shape
    invariance = sum((a - b).square().sum() for a, b in zip(x, y, strict=True)) / (count * length)
    variance = covariance = 0.0
    for view in (x, y):
        means = [sum(view[:, d]) / count for d in range(length)]
        for d in range(length):
            spread = sum((v - means[d]) ** 2 for v in view[:, d]) / (count - 1)
            variance = variance + (1 - (spread + 1e-4).sqrt()).clamp(min=0) / length / 2
            for e in range(length):
                if e != d:
                    pairs = zip(view[:, d], view[:, e], strict=True)
                    product = sum((v - means[d]) * (w - means[e]) for v, w in pairs)
                    covariance = covariance + (product / (count - 1)) ** 2 / length
    return weights[0] * invariance + weights[1] * variance + weights[2] * covariance


def test_a_step_against_loops():
    data, method = batch(videos=5), make_method("vicreg").double()
    data.clips.data = data.clips.double()
    loss = method(data)["loss"]
    embeddings = method.projector(method.encoder(data.clips.flatten(0, 1))).unflatten(0, (5, 2))
    wanted = published(embeddings[:, 0], embeddings[:, 1])
    torch.testing.assert_close(loss, wanted)
    weight = method.encoder.net[1].weight
    mine, theirs = (torch.autograd.grad(each, weight)[0] for each in (loss, wanted))
    torch.testing.assert_close(mine, theirs)


def test_more_views_are_the_mean_over_their_pairs():
    data, method = batch(videos=5, views=3), make_method("vicreg")
    embeddings = method.projector(method.encoder(data.clips.flatten(0, 1))).unflatten(0, (5, 3))
    pairs = [published(embeddings[:, i], embeddings[:, j]) for i, j in ((0, 1), (0, 2), (1, 2))]
    torch.testing.assert_close(method(data)["loss"], sum(pairs) / 3)


def test_the_weights_are_options():
    data = batch(videos=4)
    only_variance = make_method("vicreg", invariance=0.0, variance=3.0, covariance=0.0)
    embeddings = only_variance.projector(only_variance.encoder(data.clips.flatten(0, 1)))
    views = embeddings.unflatten(0, (4, 2)).unbind(dim=1)
    wanted = published(*views, weights=(0.0, 3.0, 0.0))
    torch.testing.assert_close(only_variance(data)["loss"], wanted)


def test_one_video_has_no_variance():
    with pytest.raises(UserError, match=r"no variance: set TRAIN\.BATCH"):
        make_method("vicreg")(batch(videos=1))


def test_equal_embeddings_cost_what_chance_says():
    method = make_method("vicreg")
    method.projector = torch.nn.Sequential(torch.nn.Linear(16, DIM))
    with torch.no_grad():
        for parameter in method.projector.parameters():
            parameter.fill_(0.5)
        method.projector[0].weight.zero_()
    loss = method(batch())["loss"]
    torch.testing.assert_close(loss.item(), method.loss_of_chance(videos=6, clips=2))
