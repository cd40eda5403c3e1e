import pytest
import torch

from tests.methods.made import free, inner
from tests.robustness.attacks.test_inner import EPS, clips, loss, network
from vidcsl.errors import UserError
from vidcsl.robustness.attacks.inner import FreeAttack, InnerAttack
from vidcsl.robustness.attacks.pgd import PGD
from vidcsl.robustness.threats import L2, Flicker


def replay(attack, clean, *, seeds=range(6), slope=1.0):
    """A step of a training whose loss has this slope at every pixel of the perturbed clips."""
    shown = attack(None, clean, None, seeds=seeds)
    (slope * shown).sum().backward()
    attack.climb()
    return shown.detach()


def test_a_perturbation_climbs_by_the_gradient_of_the_training_step():
    clean, attack = clips(), free(eps=EPS, replays=3)
    first, second, third = (replay(attack, clean, slope=slope) for slope in (1.0, -1.0, 1.0))
    assert 0 < float((first - clean).abs().max()) <= EPS + 1e-7
    torch.testing.assert_close(second, torch.minimum(first + EPS, clean + EPS).clamp(max=1))
    torch.testing.assert_close(third, torch.maximum(second - EPS, clean - EPS).clamp(min=0))
    assert not attack._now  # nothing is held when no replay is left
    assert torch.equal(replay(attack, clean), first)  # the same seeds begin alike


def test_clips_are_told_apart_by_their_seeds():
    clean, attack = clips(), free(eps=EPS)
    one = attack(None, clean[:3], None, seeds=range(3))
    other = attack(None, clean[:3], None, seeds=range(3, 6))
    (one.sum() - other.sum()).backward()
    attack.climb()
    moved = [attack(None, clean[:3], None, seeds=s) for s in (range(3), range(3, 6))]
    assert (moved[0] >= one).all()
    assert (moved[1] <= other).all()
    assert not torch.equal(one, other)


def test_replays_raise_the_loss_as_an_attack_does():
    model, clean, attack = network().eval(), clips(), free(eps=EPS, replays=5)
    losses = []
    for _ in range(5):
        shown = attack(model, clean, loss, seeds=range(6))
        losses.append(loss(model(shown)).sum())
        losses[-1].backward()
        attack.climb()
        assert float((shown - clean).detach().abs().max()) <= EPS + 1e-6
        assert shown.min() >= 0
        assert shown.max() <= 1
    whole = loss(model(inner(eps=EPS, steps=5)(model, clean, loss, seeds=range(6)))).sum()
    assert losses[0] < losses[1]
    assert losses[-1] > 0.95 * whole


@pytest.mark.parametrize("threat", [L2(1.0), Flicker(EPS)], ids=repr)
def test_any_threat_climbs(threat):
    model, clean = network().eval(), clips()
    attack = FreeAttack(InnerAttack(threat, PGD()), replays=4)
    losses = []
    for _ in range(4):
        losses.append(loss(model(attack(model, clean, loss, seeds=range(6)))).sum())
        losses[-1].backward()
        attack.climb()
    assert losses[-1] > losses[0]


def test_a_step_that_overflowed_moves_nothing():
    clean, attack = clips(), free(eps=EPS)
    first = attack(None, clean, None, seeds=range(6))
    first.backward(torch.full_like(first, torch.inf))
    attack.climb()
    torch.testing.assert_close(attack(None, clean, None, seeds=range(6)), first)


def test_no_budget_no_perturbation_and_no_savings_of_an_attack():
    clean = clips()
    assert torch.equal(free(eps=0.0)(None, clean, None, seeds=range(6)), clean)
    with pytest.raises(UserError, match="sees all pixels"):
        FreeAttack(inner(every=2), replays=2)
