"""What every solver keeps under every threat, and the optima that are known in closed form."""

import pytest
import torch
from torch import nn

from tests.robustness.attacks.models import (
    CLASSES,
    Linear,
    direction,
    predict,
    random_clips,
    seeded,
    sharp,
)
from vidcsl.errors import UserError
from vidcsl.robustness.attacks import SOLVERS, attack
from vidcsl.robustness.attacks.goals import Targeted, cross_entropy, margin, targeted_cross_entropy
from vidcsl.robustness.threats import L1, L2, Flicker, FrameSparse, Linf, Universal, to_levels

QUICK = {
    "fgsm": {},
    "pgd": {"steps": 6},
    "mifgsm": {"steps": 6},
    "apgd": {"steps": 10},
    "adam": {"steps": 10},
    "fab": {"steps": 8},
    "square": {"queries": 20},
    "autoattack": {"steps": 5, "targets": 1, "queries": 10},
    "random_noise": {"draws": 2},
    "random_search": {"queries": 5},
}
BALLS = {
    "linf": Linf(0.02),
    "l2": L2(0.4),
    "l1": L1(3.0),
    "l21": FrameSparse(0.6),
    "l2 a frame": L2(0.3, over="frame"),
    "l1 a frame": L1(2.0, over="frame"),
    "flicker": Flicker(0.05),
    "two frames": L2(0.5, frames="random:2"),
    "salient frame": Linf(0.05, frames="saliency:1"),
    "searched frame": L2(0.4, frames="greedy:1"),
    "patch": Linf(0.3, region="patch:0.1"),
    "moving patch": L2(0.5, region="moving_patch:0.1"),
    "border": L1(4.0, region="border:0.4"),
}
SHARED = {
    "universal": Universal(Linf(0.03)),
    "universal l1": Universal(L1(3.0)),
    "cyclic": Universal(L2(0.5), cyclic=True),
    "universal flicker": Universal(Flicker(0.1)),
}
ONLY_NORMS = {"linf", "l2", "l1", "two frames", "salient frame", "searched frame"}
ONLY_NORMS |= {"patch", "moving patch", "border"}
OF_FRAMES = {"l21", "l2 a frame", "l1 a frame"}
FITS = {
    "fab": ONLY_NORMS,
    "adam": {"linf", "salient frame", "patch", "flicker", "universal", "universal flicker"},
    "square": {*BALLS, *SHARED} - OF_FRAMES,
}


def goal_for(solver: str) -> str:
    return "margin" if solver in ("fab", "square") else "cross_entropy"


def attacked(model: nn.Module, threat, solver: str, clips=None, **options):
    clips = random_clips() if clips is None else clips
    options.setdefault("goal", goal_for(solver))
    labels = options.pop("labels", predict(model, clips))
    made = SOLVERS[solver](**QUICK[solver])
    return attack(model, clips, labels, threat=threat, solver=made, **options)


@pytest.mark.parametrize("solver", sorted(SOLVERS))
def test_every_solver_is_in_the_table(solver):
    assert solver in QUICK


@pytest.mark.parametrize("solver", sorted(QUICK))
@pytest.mark.parametrize("name", [*BALLS, *SHARED])
def test_any_solver_under_any_threat(name, solver):
    """`attack` verifies each budget; the attack must do no harm, and a strong one some good."""
    model, clips = sharp(), random_clips()
    labels = predict(model, clips)
    threat = {**BALLS, **SHARED}[name]
    if name not in FITS.get(solver, {name}):
        with pytest.raises(UserError, match=f"{solver} supports linf"):
            attacked(model, threat, solver)
        return
    found = attacked(model, threat, solver, clips)
    value = margin if solver == "autoattack" else cross_entropy
    with torch.no_grad():
        gained = value(model(found), labels) - value(model(clips), labels)
    if solver in ("pgd", "apgd", "autoattack"):
        assert (gained >= 0).all() or name in SHARED
        assert gained.max() > 0.03


@pytest.mark.parametrize("solver", sorted(QUICK))
@pytest.mark.parametrize("name", ["linf", "l2", "patch", "flicker", "searched frame"])
def test_a_clip_does_not_depend_on_its_batch(name, solver):
    if name not in FITS.get(solver, {name}):
        pytest.skip("refused")
    model, clips, seeds = sharp(), random_clips(4), torch.tensor([9, 8, 7, 6])
    together = attacked(model, BALLS[name], solver, clips, seeds=seeds)
    order = torch.tensor([3, 1])
    some = attacked(model, BALLS[name], solver, clips[order], seeds=seeds[order])
    torch.testing.assert_close(some, together[order], rtol=0, atol=1e-7)
    assert torch.equal(attacked(model, BALLS[name], solver, clips, seeds=seeds), together)


@pytest.mark.parametrize("solver", ["pgd", "apgd", "adam", "fab", "square", "random_noise"])
@pytest.mark.parametrize("threat", [Linf(4.4 / 255), L2(0.4), L1(3.0), Flicker(9 / 255)], ids=str)
def test_quantised_clips_are_8_bit_within_the_budget_and_what_the_model_saw(threat, solver):
    refused = {"fab": Flicker, "adam": L1 | L2}.get(solver, ())
    if isinstance(threat, refused):
        pytest.skip("refused")
    model, clips = sharp(), random_clips().float().double()
    seen: list[torch.Tensor] = []
    handle = model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    found = attacked(model, threat, solver, clips, quantise=True)
    handle.remove()
    assert torch.equal(found, to_levels(found))
    sizes = threat.size(((found - to_levels(clips)) * 255).round())
    assert (sizes <= 255 * threat.eps * (1 + 1e-9)).all()
    shown = {clip.numpy().tobytes() for batch in seen for clip in batch}
    assert all(clip.numpy().tobytes() in shown for clip in found)


def test_an_8_bit_attack_under_a_small_l2_budget_still_fools():
    """Scaled down until its rounding fits, the perturbation would be nothing, and fool none."""
    model, clips = seeded(Linear, 6144), to_levels(random_clips(40, (3, 8, 16, 16)))
    labels, fooled = predict(model, clips), {}
    for quantise in (False, True):
        options = {"threat": L2(0.08), "solver": SOLVERS["pgd"](steps=8), "quantise": quantise}
        found = attack(model, clips, labels, **options)
        fooled[quantise] = int((predict(model, found) != labels).sum())
    assert fooled[False] >= 4
    assert fooled[True] >= 2


def test_nothing_is_allowed_below_one_level():
    for threat in (Linf(0.9 / 255), Flicker(0.5 / 255), L2(0.003)):
        with pytest.raises(UserError, match="8-bit"):
            attacked(sharp(), threat, "pgd", quantise=True)
    attacked(sharp(), Linf(1 / 255), "pgd", quantise=True)


CLOSED_FORMS = {
    "linf": (Linf(0.1), lambda w: 0.1 * w.abs().sum()),
    "l2": (L2(0.3), lambda w: 0.3 * w.norm()),
    # Grey pixels can change by 0.5: the budget of 2.2 takes four of them all the way, one by 0.2.
    "l1": (L1(2.2), lambda w: 0.5 * w.abs().topk(4).values.sum() + 0.2 * w.abs().topk(5).values[4]),
}


# By how much the gain may fall short: the Euclidean projection onto the L1 ball takes a little back
# from every pixel.
SLACK = {("l1", "pgd"): 0.01, ("l1", "apgd"): 0.01}


@pytest.mark.parametrize("solver", ["fgsm", "pgd", "mifgsm", "apgd"])
@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_the_optimum_on_a_linear_model(name, solver):
    """Two classes: the margin is linear, and its largest gain in each ball is known."""
    threat, best_gain = CLOSED_FORMS[name]
    model, clips = seeded(Linear, 54, 2), torch.full((2, 3, 2, 3, 3), 0.5, dtype=torch.float64)
    labels = predict(model, clips)
    steps = 1 if solver == "fgsm" else 60
    made = SOLVERS[solver](steps=steps, stop_when_fooled=False)
    found = attack(model, clips, labels, threat=threat, goal="margin", solver=made)
    with torch.no_grad():
        gained = margin(model(found), labels) - margin(model(clips), labels)
    best = best_gain(direction(model, labels[0])).expand(2)
    torch.testing.assert_close(gained, best, rtol=SLACK.get((name, solver), 1e-5), atol=0)


@pytest.mark.parametrize("steps", [10, 20, 40])
def test_pgd_reaches_the_l1_optimum_in_few_steps(steps):
    """Steps of one size would end 1.2 per cent below it, however many there are."""
    threat, best_gain = CLOSED_FORMS["l1"]
    model, clips = seeded(Linear, 54, 2), torch.full((2, 3, 2, 3, 3), 0.5, dtype=torch.float64)
    labels = predict(model, clips)
    solver = SOLVERS["pgd"](steps=steps, stop_when_fooled=False)
    found = attack(model, clips, labels, threat=threat, goal="margin", solver=solver)
    with torch.no_grad():
        gained = margin(model(found), labels) - margin(model(clips), labels)
    assert (gained >= 0.99 * best_gain(direction(model, labels[0]))).all()


def test_adam_reaches_the_flicker_optimum_on_a_linear_model():
    model, clips = seeded(Linear, 54, 2), torch.full((1, 3, 2, 3, 3), 0.5, dtype=torch.float64)
    labels = predict(model, clips)
    solver = SOLVERS["adam"](steps=100, stop_when_fooled=False)
    found = attack(model, clips, labels, threat=Flicker(0.1), goal="margin", solver=solver)
    offsets = direction(model, labels[0]).view(3, 2, 9).sum(dim=2)
    expected = 0.1 * offsets.sign()[None, :, :, None, None]
    torch.testing.assert_close(found - clips, expected.expand_as(clips), rtol=1e-6, atol=1e-9)


def test_stopping_early_changes_no_accuracy():
    model, clips = sharp(), random_clips()
    labels = predict(model, clips)
    for name in ("apgd", "mifgsm", "adam", "square"):
        options = {"threat": Linf(0.01), "goal": goal_for(name)}
        fooled = [
            predict(
                model,
                attack(
                    model,
                    clips,
                    labels,
                    solver=SOLVERS[name](**QUICK[name], stop_when_fooled=stop),
                    **options,
                ),
            )
            != labels
            for stop in (True, False)
        ]
        assert torch.equal(*fooled)


def test_a_start_from_other_clips_is_used():
    model, clips = sharp(), random_clips()
    labels = predict(model, clips)
    solver = SOLVERS["pgd"](steps=3, stop_when_fooled=False)
    small = attack(model, clips, labels, threat=Linf(0.01), solver=solver)
    seen: list[torch.Tensor] = []
    model.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].detach().clone()))
    attack(model, clips, labels, threat=Linf(0.02), solver=solver, start=small)
    torch.testing.assert_close(seen[1], small)
    with pytest.raises(UserError, match="cannot start"):
        attack(model, clips, labels, threat=Flicker(0.02), solver=solver, start=small)


@pytest.mark.parametrize("solver", ["pgd", "apgd", "fab", "square", "autoattack"])
def test_images(solver):
    model, images = sharp(2), random_clips(5, (3, 8, 8))
    labels = predict(model, images)
    for threat in (Linf(0.05), L2(0.8), L1(6.0), Linf(0.4, region="patch:0.2")):
        found = attacked(model, threat, solver, images)
        assert found.shape == images.shape
        if solver not in ("square",):
            assert (predict(model, found) != labels).any()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mifgsm", {"decay": -1.0}),
        ("apgd", {"rho": 1.5}),
        ("apgd", {"steps": 0}),
        ("adam", {"learning_rate": 0.0}),
        ("adam", {"smoothness": -1.0}),
        ("fab", {"steps": 0}),
        ("square", {"queries": 0}),
        ("square", {"share": 0.0}),
        ("random_search", {"share": 2.0}),
        ("autoattack", {"targets": 0}),
    ],
)
def test_options_that_mean_nothing(name, options):
    with pytest.raises(UserError):
        SOLVERS[name](**options)


def test_targets_of_ones_own_choice():
    model, clips = sharp(), random_clips()
    labels = predict(model, clips)
    targets = (labels + 2) % CLASSES
    goal = Targeted(targeted_cross_entropy, targets=targets)
    solver = SOLVERS["pgd"](steps=40)
    found = attack(model, clips, labels, threat=Linf(0.2), goal=goal, solver=solver)
    assert (predict(model, found) == targets).sum() >= 5
    with pytest.raises(UserError, match="as many targets"):
        attack(model, clips[:2], labels[:2], threat=Linf(0.2), goal=goal, solver=solver)
