import copy
import math

import pytest
import torch
import torch.nn.functional as F

from tests.methods.made import DIM, TEMPERATURE, batch, make_method
from vidcsl.errors import UserError
from vidcsl.methods.false_negatives import Samples
from vidcsl.methods.moco import KeyQueue


def unit(rows):
    return rows / rows.norm(dim=1, keepdim=True)


def gradients(method, loss):
    weights = {k: p for k, p in method.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(loss, list(weights.values()))
    return dict(zip(weights, found, strict=True))


def assert_same(mine, theirs):
    assert mine.keys() == theirs.keys()
    for name in mine:
        torch.testing.assert_close(mine[name], theirs[name], msg=lambda m, n=name: n + m)


def parts(method, data):
    """Query and key of every (video, view), with copies of the networks."""
    teacher = copy.deepcopy(method.teacher)
    flat = data.clips.flatten(0, 1)
    q = unit(method.predictor(method.projector(method.encoder(flat))))
    with torch.no_grad():
        k = unit(teacher.projector(teacher.encoder(flat)))
    return q, k


def cross_entropy(q, positives, negatives):
    logits = torch.stack([q @ key for key in [*positives, *negatives]]) / TEMPERATURE
    return -F.log_softmax(logits, dim=0)[: len(positives)].mean()


@pytest.mark.parametrize("views", [2, 3])
def test_two_steps_of_v2_against_loops(views):
    method = make_method("moco_v2", queue=4 * views + 3).double()
    queue = [(key, -1) for key in method.queue.keys.clone()]
    for step in range(2):
        data = batch(videos=4, views=views, seed=step)
        data = type(data)(data.clips.double(), data.labels, data.groups, data.videos, 0.5)
        q, k = parts(method, data)
        total = 0.0
        for i in range(4 * views):
            video = 40 + i // views
            positives = [k[j] for j in range(4 * views) if j // views == i // views and j != i]
            total = total + cross_entropy(q[i], positives, [z for z, v in queue if v != video])
        wanted = total / (4 * views)
        loss = method(data)["loss"]
        torch.testing.assert_close(loss, wanted)
        assert_same(gradients(method, loss), gradients(method, wanted))
        place = step * 4 * views  # the newest keys take the place of the oldest
        for i, key in enumerate(k):
            queue[(place + i) % len(queue)] = (key, 40 + i // views)
        torch.testing.assert_close(method.queue.keys, torch.stack([z for z, _ in queue]))
        assert method.queue.videos.tolist() == [v for _, v in queue]


@pytest.mark.parametrize("views", [2, 3])
def test_a_step_of_v3_against_loops(views):
    data, method = batch(videos=4, views=views), make_method("moco_v3")
    q, k = parts(method, data)
    total = 0.0
    for i in range(4 * views):
        others = [j for j in range(4 * views) if j % views != i % views]
        positives = [k[j] for j in others if j // views == i // views]
        negatives = [k[j] for j in others if j // views != i // views]
        total = total + cross_entropy(q[i], positives, negatives)
    loss = method(data)["loss"]
    torch.testing.assert_close(loss, total / (4 * views))
    assert_same(gradients(method, loss), gradients(method, total / (4 * views)))


@pytest.mark.parametrize("name", ["moco_v2", "moco_v3", "byol", "simclr"])
def test_the_momentum_encoder_starts_from_loaded_weights(name):
    method = make_method(name, **({"judge": "momentum"} if name == "simclr" else {}))
    with torch.no_grad():
        for weight in method.encoder.parameters():
            weight.add_(1.0)
    method.encoder_replaced()
    for mine, theirs in zip(
        method.teacher.encoder.parameters(), method.encoder.parameters(), strict=True
    ):
        assert torch.equal(mine, theirs)
        assert mine is not theirs
        assert not mine.requires_grad


@pytest.mark.parametrize("name", ["moco_v2", "moco_v3", "byol", "simclr"])
def test_the_momentum_encoder_follows(name):
    method = make_method(name, **({"judge": "momentum"} if name == "simclr" else {}))
    online = [*method.encoder.parameters(), *method.projector.parameters()]
    slow = list(method.teacher.parameters())
    before = [p.clone() for p in slow]
    with torch.no_grad():
        for weight in online:
            weight.add_(1.0)
    method.after_step(0.25)
    momentum = 1 - 0.1 * (math.cos(math.pi / 4) + 1) / 2  # 0.9 at the start, along a cosine
    for old, new, target in zip(before, slow, online, strict=True):
        torch.testing.assert_close(new.data, momentum * old + (1 - momentum) * target.data)
    assert not any(p.requires_grad for p in slow)


def test_the_group_of_a_queued_key_is_kept():
    method = make_method("moco_v2", detector="known_groups", queue=12)
    method(batch(videos=6))  # videos 40 to 45, groups 0 0 1 1 2 2
    data = batch(videos=3)
    later = type(data)(data.clips, data.labels, torch.tensor([1, 7, 2]), data.videos + 50, 1.0)
    flagged = method(later)["flagged"]
    # Group 1 has 4 keys in the queue, group 7 none, group 2 has 4; each of 2 views is an anchor.
    assert int(flagged.part.sum()) == 2 * (4 + 0 + 4)
    assert int(flagged.whole.sum()) == 6 * 12


def test_a_queue_shorter_than_a_step_is_an_error():
    with pytest.raises(UserError, match=r"METHOD\.QUEUE is 11, shorter than the 12 keys"):
        make_method("moco_v2", queue=11)(batch(videos=6))


def test_a_queue_wraps_around():
    queue = KeyQueue(length=5, dim=DIM)
    for step in range(4):
        ids = torch.arange(3) + 3 * step
        queue.push(ids[:, None].expand(3, DIM).float(), Samples(ids, ids, ids, ids))
    assert queue.videos.tolist() == [10, 11, 7, 8, 9]
    assert queue.keys[:, 0].tolist() == [10, 11, 7, 8, 9]
    assert (queue.samples().views == -1).all()
