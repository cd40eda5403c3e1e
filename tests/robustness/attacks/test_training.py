import pytest
import torch
from torch import nn

from tests.methods.made import free, inner
from vidcsl.errors import UserError
from vidcsl.robustness.attacks import PGD, SOLVERS
from vidcsl.robustness.attacks.training import FreeAttack, TrainingAttack
from vidcsl.robustness.threats import L2, Flicker, Linf

EPS = 4 / 255
LAST = {"stop_when_fooled": False, "keep_worst": False}


def network():
    torch.manual_seed(0)
    parts = [nn.Flatten(), nn.Linear(3 * 4 * 8 * 8, 12), nn.BatchNorm1d(12), nn.Tanh()]
    return nn.Sequential(*parts, nn.Linear(12, 5))


class Pooled(nn.Module):
    """Takes clips of any size."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv3d(3, 5, (1, 3, 3), padding=(0, 1, 1))
        self.seen = []

    def forward(self, clips):
        self.seen.append(tuple(clips.shape[2:]))
        return self.conv(clips).tanh().mean(dim=(2, 3, 4))


def clips(count=6):
    return torch.rand(count, 3, 4, 8, 8, generator=torch.Generator().manual_seed(1))


def loss(outputs):
    return nn.functional.cross_entropy(outputs, torch.arange(len(outputs)) % 5, reduction="none")


def test_the_loss_rises_within_the_budget_and_the_network_is_left_alone():
    model, clean = network().train(), clips()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    attacked = inner(eps=EPS, steps=5)(model, clean, loss, seeds=range(6))
    assert all(module.training for module in model.modules())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert float((attacked - clean).abs().max()) <= EPS + 1e-6
    assert attacked.min() >= 0
    assert attacked.max() <= 1
    noise = (clean + EPS * torch.randn(clean.shape).sign()).clamp(0, 1)
    model.eval()
    assert (loss(model(attacked)) > loss(model(clean))).all()
    assert loss(model(attacked)).mean() > loss(model(noise)).mean() + 0.05


def test_the_last_delta_of_a_run_by_a_plain_loop():
    model, clean = network().eval(), clips()
    found = TrainingAttack(Linf(EPS), PGD(steps=3, step_size=EPS / 2, random_start=False, **LAST))(
        model, clean, loss, seeds=range(6)
    )
    delta = torch.zeros_like(clean)
    for _ in range(3):
        delta.requires_grad_(True)
        (gradient,) = torch.autograd.grad(loss(model(clean + delta)).sum(), delta)
        delta = (delta.detach() + EPS / 2 * gradient.sign()).clamp(-EPS, EPS)
        delta = (clean + delta).clamp(0, 1) - clean
    torch.testing.assert_close(found, clean + delta)


@pytest.mark.parametrize("solver", ["pgd", "mifgsm", "apgd", "adam"])
def test_keeping_the_last_needs_one_whole_run(solver):
    with pytest.raises(UserError, match="keep_worst=false"):
        SOLVERS[solver](keep_worst=False)
    model, clean = network().eval(), clips()
    attack = TrainingAttack(Linf(EPS), SOLVERS[solver](steps=4, **LAST))
    assert (
        loss(model(attack(model, clean, loss, seeds=range(6)))).mean() > loss(model(clean)).mean()
    )


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ({"every": 2}, (2, 8, 8)),
        ({"scale": 0.5}, (4, 4, 4)),
        ({"every": 3, "scale": 0.7}, (2, 6, 6)),
    ],
)
def test_a_coarse_attack_sees_less_and_keeps_the_budget(options, shape):
    model, clean = Pooled(), clips()
    coarse = inner(eps=EPS, steps=5, **options, coarse_until=0.5)
    attacked = coarse(model, clean, loss, seeds=range(6), progress=0.4)
    assert set(model.seen) == {shape}
    assert float((attacked - clean).abs().max()) <= EPS + 1e-6
    assert attacked.min() >= 0
    assert attacked.max() <= 1
    assert loss(model(attacked)).mean() > loss(model(clean)).mean()
    model.seen = []
    coarse(model, clean, loss, seeds=range(6), progress=0.5)
    assert set(model.seen) == {(4, 8, 8)}
    with pytest.raises(UserError, match="linf"):
        TrainingAttack(L2(1.0), PGD(), every=2)


def test_the_budget_rises_and_can_be_shared_out():
    model, clean = network().eval(), clips()
    attack = inner(eps=EPS, ramp=0.5)
    sizes = [
        float(
            (attack(model, clean, loss, seeds=range(6), progress=p, fraction=s) - clean).abs().max()
        )
        for p, s in ((0.0, 1.0), (0.25, 1.0), (0.5, 1.0), (1.0, 1.0), (1.0, 0.25))
    ]
    assert sizes == pytest.approx([0, EPS / 2, EPS, EPS, EPS / 4], abs=1e-6)


def test_the_attack_computes_as_the_caller_unless_it_is_to_be_exact():
    model, clean, dtypes = network().eval(), clips(), []
    model[1].register_forward_hook(lambda _module, _inputs, out: dtypes.append(out.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        rough = inner(eps=EPS, steps=5)(model, clean, loss, seeds=range(6))
        assert set(dtypes) == {torch.bfloat16}
        dtypes.clear()
        exact = inner(eps=EPS, steps=5, float32=True)(model, clean, loss, seeds=range(6))
        assert set(dtypes) == {torch.float32}
    gains = [
        float((loss(model(each)) - loss(model(clean))).detach().mean()) for each in (rough, exact)
    ]
    assert gains[0] > 0.9 * gains[1] > 0


def replay(attack, clean, *, seeds=range(6), slope=1.0):
    """A step of a training whose loss has this slope at every pixel of the perturbed clips."""
    shown = attack(None, clean, None, seeds=seeds)
    (slope * shown).sum().backward()
    attack.ascend()
    return shown.detach()


def test_a_perturbation_ascends_by_the_gradient_of_the_training_step():
    clean, attack = clips(), free(eps=EPS, replays=3)
    first, second, third = (replay(attack, clean, slope=slope) for slope in (1.0, -1.0, 1.0))
    assert 0 < float((first - clean).abs().max()) <= EPS + 1e-7
    torch.testing.assert_close(second, torch.minimum(first + EPS, clean + EPS).clamp(max=1))
    torch.testing.assert_close(third, torch.maximum(second - EPS, clean - EPS).clamp(min=0))
    assert attack.pending == 0  # nothing is held when no replay is left
    assert torch.equal(replay(attack, clean), first)  # the same seeds begin alike


def test_clips_are_told_apart_by_their_seeds():
    clean, attack = clips(), free(eps=EPS)
    one = attack(None, clean[:3], None, seeds=range(3))
    other = attack(None, clean[:3], None, seeds=range(3, 6))
    (one.sum() - other.sum()).backward()
    attack.ascend()
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
        attack.ascend()
        assert float((shown - clean).detach().abs().max()) <= EPS + 1e-6
        assert shown.min() >= 0
        assert shown.max() <= 1
    whole = loss(model(inner(eps=EPS, steps=5)(model, clean, loss, seeds=range(6)))).sum()
    assert losses[0] < losses[1]
    assert losses[-1] > 0.95 * whole


@pytest.mark.parametrize("threat", [L2(1.0), Flicker(EPS)], ids=repr)
def test_any_threat_ascends(threat):
    model, clean = network().eval(), clips()
    attack = FreeAttack(TrainingAttack(threat, PGD()), replays=4)
    losses = []
    for _ in range(4):
        losses.append(loss(model(attack(model, clean, loss, seeds=range(6)))).sum())
        losses[-1].backward()
        attack.ascend()
    assert losses[-1] > losses[0]


def test_a_step_that_overflowed_moves_nothing():
    clean, attack = clips(), free(eps=EPS)
    first = attack(None, clean, None, seeds=range(6))
    first.backward(torch.full_like(first, torch.inf))
    attack.ascend()
    torch.testing.assert_close(attack(None, clean, None, seeds=range(6)), first)


def test_no_budget_no_perturbation_and_no_savings_of_an_attack():
    clean = clips()
    assert torch.equal(free(eps=0.0)(None, clean, None, seeds=range(6)), clean)
    with pytest.raises(UserError, match="sees all pixels"):
        FreeAttack(inner(every=2), replays=2)
