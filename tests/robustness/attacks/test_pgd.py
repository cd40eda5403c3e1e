from itertools import islice
from pathlib import Path

import av
import pytest
import torch
from torch import Tensor, nn

from tests.robustness.attacks.models import (
    CLASSES,
    Linear,
    TinyNet,
    numbers,
    predict,
    problem_of,
    random_clips,
    seeded,
    sharp,
)
from vidcsl.errors import UserError
from vidcsl.robustness.attacks import PGD, SOLVERS, MomentumPGD, RandomNoise, attack
from vidcsl.robustness.attacks.goals import cross_entropy
from vidcsl.robustness.attacks.pgd import default_step_size
from vidcsl.robustness.threats import L2, BudgetExceeded, Linf

VIDEOS = Path(__file__).parents[4] / "shared" / "data" / "ucf101_10_mini"
THREATS = pytest.mark.parametrize("threat", [Linf(eps=0.02), L2(eps=0.4)], ids=["linf", "l2"])


@pytest.fixture
def model() -> nn.Module:
    return sharp()


@pytest.fixture
def clips() -> Tensor:
    return random_clips()


@pytest.fixture
def labels(model: nn.Module, clips: Tensor) -> Tensor:
    return predict(model, clips)


def losses(model: nn.Module, clips: Tensor, labels: Tensor) -> Tensor:
    with torch.no_grad():
        return cross_entropy(model.eval()(clips), labels)


@pytest.mark.parametrize("goal", ["cross_entropy", "margin", "targeted_cross_entropy"])
@pytest.mark.parametrize("random_start", [True, False])
def test_pgd_on_a_linear_model_reaches_the_closed_form(goal, random_start):
    shape = (2, 3, 2, 3, 3)
    model = seeded(Linear, 54, 2)
    clips = torch.full(shape, 0.5, dtype=torch.float64)
    labels = predict(model, clips)
    direction = model.head.weight[1 - labels[0]] - model.head.weight[labels[0]]
    direction = direction.detach().view(shape[1:])
    solver = PGD(steps=60, random_start=random_start, stop_when_fooled=False)
    for threat, best in [
        (Linf(eps=0.1), 0.1 * direction.sign()),
        (L2(eps=0.3), 0.3 * direction / direction.norm()),
    ]:
        found = attack(model, clips, labels, threat=threat, goal=goal, solver=solver) - clips
        torch.testing.assert_close(found, best.expand_as(found), rtol=1e-4, atol=1e-6)


@THREATS
def test_pgd_fools_where_noise_does_not(model, clips, labels, threat):
    noisy = attack(model, clips, labels, threat=threat, solver=RandomNoise())
    adversarial = attack(model, clips, labels, threat=threat, solver=PGD(steps=10))
    assert (predict(model, noisy) == labels).sum() > (predict(model, adversarial) == labels).sum()
    assert adversarial.dtype == clips.dtype
    assert not adversarial.requires_grad


@pytest.mark.parametrize("norm", [Linf, L2])
def test_noise_spends_the_whole_budget(model, labels, norm):
    clips = torch.full((6, 3, 4, 6, 6), 0.5, dtype=torch.float64)
    noisy = attack(model, clips, labels, threat=norm(eps=0.2), solver=RandomNoise())
    order = torch.inf if norm is Linf else 2
    sizes = torch.linalg.vector_norm((noisy - clips).flatten(1), order, dim=1)
    assert (sizes > 0.19).all()


@pytest.mark.parametrize("frames", [[1, 3], "first:2", "random:1"])
@pytest.mark.parametrize("norm", [Linf, L2])
def test_only_the_chosen_frames_change(model, clips, labels, norm, frames):
    solver = PGD(steps=3, stop_when_fooled=False)
    threat, seeds = norm(eps=0.3, frames=frames), [11, 22, 33, 44, 55, 66]
    adversarial = attack(model, clips, labels, threat=threat, solver=solver, seeds=seeds)
    changed = (adversarial != clips).flatten(3).any(dim=3).any(dim=1)
    assert torch.equal(changed, threat.mask(clips, seeds)[:, 0, :, 0, 0])


@pytest.mark.filterwarnings("ignore:the model is in train mode")
@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_exactly_as_it_was(model, clips, labels, fails):
    model.train()
    model.body[1].eval()
    model.head.weight.requires_grad_(False)
    model.head.bias.grad = torch.ones(CLASSES, dtype=torch.float64)
    modes = [module.training for module in model.modules()]
    grads = [parameter.requires_grad for parameter in model.parameters()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    rng = torch.get_rng_state()
    wrong = torch.full_like(labels, CLASSES) if fails else labels
    seen = []
    hook = model.body[0].register_forward_hook(
        lambda *_: seen.append(any(p.requires_grad for p in model.parameters()) or model.training)
    )
    try:
        attack(model, clips, wrong, threat=Linf(eps=0.02), solver=PGD(steps=2, restarts=2))
    except UserError:
        assert fails
    hook.remove()
    assert seen
    assert not any(seen)
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == grads
    assert torch.equal(model.head.bias.grad, torch.ones(CLASSES, dtype=torch.float64))
    assert model.body[0].weight.grad is None
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name
    assert torch.equal(torch.get_rng_state(), rng)


@THREATS
@pytest.mark.parametrize("solver", [PGD(steps=4, restarts=2), RandomNoise(draws=3)])
def test_a_clip_does_not_depend_on_its_batch(model, clips, labels, threat, solver):
    seeds = torch.tensor([9, 8, 7, 6, 5, 4])
    options = {"threat": threat, "solver": solver}
    together = attack(model, clips, labels, seeds=seeds, **options)
    assert torch.equal(attack(model, clips, labels, seeds=seeds, **options), together)
    order = torch.tensor([4, 1, 3])
    some = attack(model, clips[order], labels[order], seeds=seeds[order], **options)
    torch.testing.assert_close(some, together[order], rtol=0, atol=1e-9)
    alone = attack(model, clips[2:3], labels[2:3], seeds=[7], **options)
    torch.testing.assert_close(alone, together[2:3], rtol=0, atol=1e-9)


def test_other_seeds_and_other_restarts_start_elsewhere(model, clips, labels):
    options = {"threat": Linf(eps=0.02), "solver": RandomNoise()}
    clips = clips[:1].expand(6, -1, -1, -1, -1)
    one = attack(model, clips, labels, **options)
    assert not torch.equal(one[0], one[1])
    assert not torch.equal(one, attack(model, clips, labels, seeds=range(10, 16), **options))
    same = attack(model, clips, labels[:1].expand(6), seeds=[5] * 6, **options)
    assert torch.equal(same, same[:1].expand_as(same))


@THREATS
@pytest.mark.parametrize("more", [{"restarts": 3}, {"steps": 9}])
def test_more_work_never_weakens_the_attack(model, clips, labels, threat, more):
    few = {"steps": 3, "step_size": threat.eps / 2, "stop_when_fooled": False}
    weak = attack(model, clips, labels, threat=threat, solver=PGD(**few))
    strong = attack(model, clips, labels, threat=threat, solver=PGD(**(few | more)))
    fooled = predict(model, weak) != labels
    assert ((predict(model, strong) != labels) | ~fooled).all()
    higher = losses(model, strong, labels) >= losses(model, weak, labels) - 1e-9
    assert (higher | ~fooled & (predict(model, strong) != labels)).all()


@THREATS
@pytest.mark.parametrize("restarts", [1, 3])
def test_stopping_when_fooled_changes_no_accuracy(model, clips, labels, threat, restarts):
    labels = labels.clone()
    labels[0] = (labels[0] + 1) % CLASSES  # wrong from the outset
    for eps in (threat.eps / 8, threat.eps / 2, threat.eps):
        smaller = type(threat)(eps=eps)
        fooled = [
            predict(model, found) != labels
            for stop in (True, False)
            for found in [
                attack(
                    model,
                    clips,
                    labels,
                    threat=smaller,
                    solver=PGD(steps=5, restarts=restarts, stop_when_fooled=stop),
                )
            ]
        ]
        assert torch.equal(*fooled)
        assert fooled[0][0]


def test_a_clip_that_is_wrong_when_clean_is_left_alone(model, clips, labels):
    labels = labels.clone()
    labels[1] = (labels[1] + 1) % CLASSES
    found = attack(model, clips, labels, threat=Linf(eps=0.02), solver=PGD(steps=2))
    assert torch.equal(found[1], clips[1])
    assert not torch.equal(found[0], clips[0])


def test_stopping_saves_forward_passes(model, clips, labels):
    rows = []
    hook = model.register_forward_hook(lambda _, inputs, __: rows.append(len(inputs[0])))
    options = {"threat": Linf(eps=0.2), "goal": "margin"}
    attack(model, clips, labels, solver=PGD(steps=20, restarts=2), **options)
    stopping = sum(rows)
    rows.clear()
    attack(
        model, clips, labels, solver=PGD(steps=20, restarts=2, stop_when_fooled=False), **options
    )
    hook.remove()
    assert sum(rows) == 6 * (1 + 2 * 21)  # clean, then 20 gradients and a last look per run
    assert stopping < sum(rows) / 3


def test_a_restart_attacks_only_clips_that_are_still_right(model, clips, labels):
    rows = []
    model.register_forward_hook(lambda _, inputs, __: rows.append(len(inputs[0])))
    found = []
    for restarts in (1, 2):
        rows.clear()
        solver = PGD(steps=3, restarts=restarts)
        adversarial = attack(model, clips, labels, threat=Linf(eps=0.015), solver=solver)
        found.append((sum(rows), adversarial))
    (once, first), (twice, second) = found
    right = predict(model, first) == labels
    assert 0 < right.sum() < 6  # or nothing is tested
    assert right.sum() * 1 <= twice - once <= right.sum() * 4
    assert torch.equal(first[~right], second[~right])


def test_frames_stay_with_their_clip_when_others_are_done(model, clips, labels):
    labels = labels.clone()
    labels[0] = (labels[0] + 1) % CLASSES
    threat = Linf(eps=0.01, frames="random:1")
    found = attack(model, clips, labels, threat=threat, solver=PGD(steps=2))
    changed = (found != clips).flatten(3).any(dim=3).any(dim=1)
    assert torch.equal(changed[1:], threat.mask(clips, range(6))[1:, 0, :, 0, 0])


def test_each_restart_starts_elsewhere(model, clips, labels):
    seen = []
    model.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].clone()))
    attack(model, clips, labels, threat=Linf(eps=0.02), solver=RandomNoise(draws=3))
    assert len({float(batch.sum()) for batch in seen}) == 3


def test_images_are_attacked_too():
    model = seeded(TinyNet, 2)
    images = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(1)).double()
    labels = predict(model, images)
    for threat in (Linf(eps=0.1), L2(eps=1.0)):
        found = attack(model, images, labels, threat=threat, solver=PGD(steps=5))
        assert found.shape == images.shape
        assert (losses(model, found, labels) > losses(model, images, labels)).all()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_called_from_evaluation_code(model, clips, labels, mode):
    options = {"threat": Linf(eps=0.02), "solver": PGD(steps=2)}
    expected = attack(model, clips, labels, **options)
    with mode():
        inputs = clips.clone(), labels.clone()
        assert torch.equal(attack(model, *inputs, **options), expected)
        options["solver"] = lambda problem: problem.differentiate(0 * problem.clips)[1] * 0
        assert torch.equal(attack(model, *inputs, **options), clips)


def test_float32_clips_and_a_model_under_autocast(model, clips, labels):
    clips = clips.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = attack(model.float(), clips, labels, threat=L2(eps=0.4), solver=PGD(steps=3))
    assert found.dtype == torch.float32


def test_an_empty_batch_stays_empty(model, clips, labels):
    for solver in (PGD(steps=2), RandomNoise()):
        found = attack(model, clips[:0], labels[:0], threat=L2(eps=1.0), solver=solver)
        assert found.shape == (0, 3, 4, 6, 6)


def test_own_goals_and_solvers_plug_in(model, clips, labels):
    threat = Linf(eps=0.05)
    found = attack(
        model,
        clips,
        labels,
        threat=threat,
        goal=lambda logits, _: logits[:, 2],
        solver=PGD(steps=8, stop_when_fooled=False),
    )
    with torch.no_grad():
        assert (model.eval()(found)[:, 2] > model(clips)[:, 2]).any()
    with pytest.raises(BudgetExceeded):
        attack(
            model,
            clips,
            labels,
            threat=threat,
            solver=lambda problem: torch.where(problem.clips > 0.5, -0.06, 0.06),
        )


def test_agrees_with_torchattacks(model, clips, labels):
    torchattacks = pytest.importorskip("torchattacks")
    model.eval()
    theirs = torchattacks.PGD(model, eps=0.02, alpha=0.004, steps=6, random_start=False)
    ours = attack(
        model,
        clips,
        labels,
        threat=Linf(eps=0.02),
        solver=PGD(steps=6, step_size=0.004, random_start=False, stop_when_fooled=False),
    )
    torch.testing.assert_close(ours, theirs(clips, labels), rtol=0, atol=1e-9)


def test_real_video_keeps_its_budget(model):
    path = next(iter(sorted(VIDEOS.rglob("*.mp4"))), None)
    if path is None:
        pytest.skip("the folder of real videos is not here")
    with av.open(str(path)) as video:
        decoded = islice(video.decode(video=0), 4)
        frames = [frame.to_ndarray(format="rgb24") for frame in decoded]
    clip = torch.stack([torch.from_numpy(f) for f in frames]).permute(3, 0, 1, 2)[None] / 255
    for threat in (Linf(eps=1 / 255), L2(eps=0.5), Linf(eps=8 / 255, frames="random:1")):
        solver = PGD(steps=2, stop_when_fooled=False)
        found = attack(model.float(), clip, torch.tensor([0]), threat=threat, solver=solver)
        assert found.shape == clip.shape
        assert not torch.equal(found, clip)


@pytest.mark.parametrize(("eps255", "best"), [(1, 0.325), (2, 0.5), (4, 1.0), (8, 1.85)])
def test_default_step_is_near_the_best_known(eps255, best):
    assert default_step_size(eps255 / 255, 20) * 255 == pytest.approx(best, rel=0.25)


@pytest.mark.parametrize("steps", [1, 2, 5, 20, 100])
def test_default_steps_can_cross_the_ball(steps):
    assert default_step_size(0.03, steps) * steps >= 2 * 0.03


@pytest.mark.parametrize(
    "options",
    [{"steps": 0}, {"restarts": 0}, {"step_size": 0.0}, {"restarts": 2, "random_start": False}],
)
def test_pgd_options_that_mean_nothing(options):
    with pytest.raises(UserError, match="PGD"):
        SOLVERS["pgd"](**options)
    with pytest.raises(UserError, match="draws"):
        SOLVERS["random_noise"](draws=0)


def broken(function) -> nn.Module:
    model = nn.Module().eval()
    model.forward = function
    return model


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clips": lambda c: c.numpy()}, "not ndarray"),
        ({"clips": lambda c: c[0]}, "shape"),
        ({"threat": lambda _: "linf"}, "such as Linf"),
        ({"solver": lambda _: "pgd"}, "such as PGD"),
        ({"clips": lambda c: c.half()}, "float32 or float64"),
        ({"clips": lambda c: (255 * c).byte()}, "float32 or float64"),
        ({"clips": lambda c: c[0, 0]}, "shape"),
        ({"clips": lambda c: c / 0.225 - 2}, "normalise inside"),
        ({"clips": lambda c: c * torch.nan}, r"\[0, 1\]"),
        ({"labels": lambda y: y[:-1]}, "integer labels"),
        ({"labels": lambda y: y.float()}, "integer labels"),
        ({"labels": lambda y: y - CLASSES}, "4 classes"),
        ({"labels": lambda y: y + CLASSES}, "4 classes"),
        ({"seeds": lambda _: [1, 2]}, "6 clips need as many seeds"),
        ({"goal": lambda _: "magic"}, "choose from cross_entropy, dlr"),
        ({"goal": lambda _: lambda logits, labels: logits.mean()}, "one number a clip"),
        ({"model": lambda m: broken(lambda x: m(x)[:, :1])}, "a model of one class"),
        ({"model": lambda m: broken(lambda x: m(x)[:-1])}, "must return logits"),
        ({"model": lambda m: broken(lambda x: {"logits": m(x)})}, "not dict"),
        ({"model": lambda m: broken(lambda x: m(x) / 0)}, "not finite"),
        ({"model": lambda m: broken(lambda x: m(x.detach()))}, "no gradient reaches"),
        ({"model": lambda m: broken(lambda x: m(x).detach())}, "no gradient reaches"),
        ({"model": lambda m: broken(lambda x: m(x) + (x * 0).sqrt().sum())}, "not finite"),
    ],
)
def test_wrong_inputs_say_so(model, clips, labels, change, message):
    model.eval()
    given = {"model": model, "clips": clips, "labels": labels, "seeds": None, "goal": "margin"}
    given |= {"threat": Linf(eps=0.02), "solver": PGD(steps=2)}
    given |= {key: spoil(given[key]) for key, spoil in change.items()}
    positional = [given.pop(key) for key in ("model", "clips", "labels")]
    with pytest.raises(UserError, match=message):
        attack(*positional, **given)


def test_mifgsm_divides_by_the_mean_over_all_of_a_clip():
    problem, solver = problem_of(Linf(0.05)), MomentumPGD(steps=10)
    delta = problem.zero()
    state = solver.begin(problem, delta)
    gradients = torch.randn(2, *delta.shape, dtype=torch.float64)
    gradients[0] *= 100  # only by the normalisation do both count alike
    momentum = torch.zeros_like(delta)
    for gradient in gradients:
        solver.advance(problem, 0, delta, numbers([0.0] * 6), gradient, state)
        for row in range(6):
            momentum[row] = momentum[row] + gradient[row] / gradient[row].abs().mean()
    torch.testing.assert_close(state["momentum"], momentum)
    assert solver.size_of_step(0.05) == pytest.approx(0.005)


def test_mifgsm_forgets_by_its_decay():
    problem, solver = problem_of(Linf(0.05)), MomentumPGD(steps=10, decay=0.5)
    delta = problem.zero()
    state, gradient = solver.begin(problem, delta), torch.full_like(delta, -3.0)
    for wanted in (-1.0, -1.5, -1.75):
        solver.advance(problem, 0, delta, numbers([0.0] * 6), gradient, state)
        torch.testing.assert_close(state["momentum"], torch.full_like(delta, wanted))
