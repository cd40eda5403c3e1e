"""A step of each contrastive method against loops, under an attack that is known."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.methods.made import (
    ATTACKING,
    CONTRASTIVE,
    TEMPERATURE,
    batch,
    free,
    inner,
    make_method,
)
from vidcsl.methods.adversarial.advcl import high_frequencies
from vidcsl.models.batchnorm import batchnorm_in_use

DETECTORS = ("none", "labels", "adaptive")
ADVERSARIAL_CONTRASTIVE = [name for name in CONTRASTIVE if name in ATTACKING]


class Darker:
    """Not an attack, but known."""

    replays = 1

    def __call__(self, _network, clips, _loss, *, seeds, progress=1.0, fraction=1.0):
        return clips * 0.9

    def ascend(self):
        pass


def embedded(method, clips, *, norms="clean"):
    twin = copy.deepcopy(method)
    with batchnorm_in_use(twin, norms):
        outputs = nn.Sequential(twin.encoder, twin.projector)(clips.flatten(0, 1))
    return F.normalize(outputs, dim=1).unflatten(0, clips.shape[:2])


def naive(embeddings, flagged):
    """NT-Xent over `[B, V, P]` by loops; `flagged(video, view, other, other view)` are left out."""
    videos, views = embeddings.shape[:2]
    total = 0.0
    for b in range(videos):
        for v in range(views):
            logits = {
                (c, w): embeddings[b, v] @ embeddings[c, w] / TEMPERATURE
                for c in range(videos)
                for w in range(views)
                if (c, w) != (b, v) and not (c != b and flagged(b, v, c, w))
            }
            denominator = torch.stack(list(logits.values())).logsumexp(0)
            own = [logits[b, w] for w in range(views) if w != v]
            total = total + denominator - sum(own) / len(own)
    return total / (videos * views)


class Seen:
    """What the detector flagged between the clean views, as a function of videos and views."""

    def __init__(self, method, views):
        self.views, self.calls = views, []
        method.detector.register_forward_hook(lambda _m, _i, out: self.calls.append(out))

    def by(self, sources):
        (flagged,) = self.calls  # once a step
        return lambda b, v, c, w: bool(
            flagged[b * self.views + sources[v], c * self.views + sources[w]]
        )


def rocl(method, data, clips, seen):
    joint = embedded(method, torch.cat([clips, clips[:, :1] * 0.9], dim=1))
    views = clips.shape[1]
    others = torch.cat([joint[:, -1:], joint[:, 1:-1]], dim=1)
    everything = naive(joint, seen.by([*range(views), 0]))
    return everything + naive(others, seen.by(range(views))) / 256


def acl(method, data, clips, seen, weight=1.0):
    by = seen.by(range(clips.shape[1]))
    clean = naive(embedded(method, clips), by)
    return (
        (2 - weight) * clean
        + weight * naive(embedded(method, clips * 0.9, norms="adversarial"), by)
    ) / 2


def dynacl(method, data, clips, seen):
    return acl(method, data, clips, seen, weight=1 + 2 / 3 * {0.3: 0.25, 0.9: 0.75}[data.progress])


def advcl(method, data, clips, seen):
    shown = embedded(method, torch.cat([clips, high_frequencies(clips[:, :1])], dim=1))
    moved = embedded(method, clips[:, :1] * 0.9, norms="adversarial")
    sources = [*range(clips.shape[1]), 0, 0]
    return naive(torch.cat([shown, moved], dim=1), seen.by(sources))


WANTED = {"rocl": rocl, "acl": acl, "dynacl": dynacl, "advcl": advcl}


@pytest.mark.parametrize("detector", DETECTORS)
@pytest.mark.parametrize("name", ADVERSARIAL_CONTRASTIVE)
def test_a_step_against_loops(name, detector):
    for progress, views in ((0.3, 2), (0.9, 3)):
        data = batch(videos=4, views=views, progress=progress)
        method = make_method(name, detector=detector, attack=Darker()).train()
        before, seen = copy.deepcopy(method), Seen(method, views)
        out = method(data)
        wanted = WANTED[name](before, data, data.clips, seen)
        torch.testing.assert_close(out["loss"], wanted, rtol=1e-4, atol=1e-4)
        assert (seen.calls[0].any()) == (detector != "none")
        assert int(out["flagged"].part.sum()) == int(seen.calls[0].sum())


@pytest.mark.parametrize("name", ADVERSARIAL_CONTRASTIVE)
def test_the_attack_raises_the_losses_that_are_then_minimised(name):
    data = batch(videos=8)
    attacked = make_method(name, attack=inner(eps=0.1, steps=5), detector="labels").train()
    still = make_method(name, attack=inner(eps=0.0), detector="labels").train()
    for _ in range(30):  # running statistics of the eval mode that is attacked
        still(data)
    attacked.load_state_dict(still.state_dict())
    assert float(attacked(data)["loss"]) > float(still(data)["loss"]) + 0.02


@pytest.mark.parametrize("name", [*ADVERSARIAL_CONTRASTIVE, "deacl", "at", "trades"])
def test_from_replay_to_replay_the_loss_rises_within_the_budget(name):
    data, losses, shown = batch(videos=8), [], []
    detector = {"detector": "labels"} if name in ADVERSARIAL_CONTRASTIVE else {}
    method = make_method(name, attack=free(eps=0.1, replays=4), **detector).train()
    for _ in range(method.replays):
        loss = method(data)["loss"]
        shown.append(next(iter(method.attack._now.values())))
        loss.backward()
        method.after_step(data.progress)  # the weights stay: no optimiser
        losses.append(float(loss))
    assert losses[0] < losses[1]
    assert losses[-1] > losses[0] + 0.005
    assert all(float((each.shown - each.clips).abs().max()) <= 0.1 + 1e-6 for each in shown)
    assert float((shown[-1].delta - shown[0].delta).abs().max()) > 0.05
    assert not method.attack._now


def test_the_clean_statistics_do_not_see_perturbed_clips():
    data = batch(videos=8)
    plain, method = make_method("simclr").train(), make_method("acl").train()
    plain(data)
    method(data)
    for kind in ("running_mean", "running_var", "num_batches_tracked"):
        clean = getattr(method.projector[1].norms["clean"], kind)
        assert torch.equal(clean, getattr(plain.projector[1], kind))
        adversarial = getattr(method.projector[1].norms["adversarial"], kind)
        assert torch.equal(clean, adversarial) == (kind == "num_batches_tracked")
    assert {each.active for each in method.modules() if hasattr(each, "active")} == {"clean"}


def test_the_weight_of_perturbed_views_rises_in_stages():
    method = make_method("dynacl")  # four stages
    weights = [method.weight(progress) for progress in (0, 0.24, 0.25, 0.5, 0.99, 1.0)]
    assert weights == pytest.approx([1, 1, 1 + 1 / 6, 1 + 1 / 3, 1.5, 1 + 2 / 3])


def test_high_frequencies_of_waves():
    places = torch.arange(16) / 16 * 2 * torch.pi
    slow, fast = (0.25 * torch.cos(k * places).expand(1, 3, 2, 16, 16) for k in (3, 6))
    passed = high_frequencies(0.5 + slow + fast)
    torch.testing.assert_close(passed, fast.clamp(0, 1), atol=1e-6, rtol=0)


def steps(method, numbers):
    optimiser = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.1)
    for number in numbers:
        data = batch(videos=8, seed=number, progress=number / 6)
        for _ in range(method.replays):
            loss = method.train()(data)["loss"]
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            method.after_step(data.progress)
    return method.state_dict()


@pytest.mark.parametrize("attack", [inner, free])
@pytest.mark.parametrize("name", ["rocl", "acl", "advcl", "deacl", "at"])
def test_all_that_a_step_depends_on_is_in_the_checkpoint(name, attack):
    whole = steps(make_method(name, attack=attack()), range(6))
    half = steps(make_method(name, attack=attack()), range(3))
    resumed = make_method(name, attack=attack())
    resumed.load_state_dict(half)
    for key, tensor in steps(resumed, range(3, 6)).items():
        assert torch.equal(tensor, whole[key]), key
