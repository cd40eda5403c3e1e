import pytest
import torch

from tests.methods.made import DIM, batch, make_method
from vidcsl.errors import UserError


def published(x, y, *, redundancy=0.0051):
    """The loss of two views `[B, P]` by loops; a BatchNorm without weights standardises."""
    norm = torch.nn.BatchNorm1d(x.shape[1], affine=False, dtype=x.dtype)
    x, y = norm(x), norm(y)
    loss = 0.0
    for d in range(x.shape[1]):
        for e in range(x.shape[1]):
            correlation = sum(a * b for a, b in zip(x[:, d], y[:, e], strict=True)) / len(x)
            loss = loss + ((1 - correlation) ** 2 if d == e else redundancy * correlation**2)
    return loss


@pytest.mark.parametrize("redundancy", [0.0051, 0.3])
def test_a_step_against_loops(redundancy):
    data, method = batch(videos=5), make_method("barlow_twins", redundancy=redundancy).double()
    data.clips.data = data.clips.double()
    loss = method(data)["loss"]
    embeddings = method.projector(method.encoder(data.clips.flatten(0, 1))).unflatten(0, (5, 2))
    wanted = published(embeddings[:, 0], embeddings[:, 1], redundancy=redundancy)
    torch.testing.assert_close(loss, wanted)
    weight = method.encoder.net[1].weight
    mine, theirs = (torch.autograd.grad(each, weight)[0] for each in (loss, wanted))
    torch.testing.assert_close(mine, theirs)


def test_more_views_are_the_mean_over_their_pairs():
    data, method = batch(videos=5, views=3), make_method("barlow_twins")
    embeddings = method.projector(method.encoder(data.clips.flatten(0, 1))).unflatten(0, (5, 3))
    pairs = [published(embeddings[:, i], embeddings[:, j]) for i, j in ((0, 1), (0, 2), (1, 2))]
    torch.testing.assert_close(method(data)["loss"], sum(pairs) / 3)


def test_one_video_has_no_correlations():
    with pytest.raises(UserError, match=r"no correlations: set TRAIN\.BATCH"):
        make_method("barlow_twins")(batch(videos=1))


def test_equal_embeddings_cost_what_chance_says():
    method = make_method("barlow_twins")
    method.projector = torch.nn.Linear(16, DIM)
    torch.nn.init.zeros_(method.projector.weight)
    loss = method(batch())["loss"]
    torch.testing.assert_close(loss.item(), method.loss_of_chance(videos=6, clips=2))
