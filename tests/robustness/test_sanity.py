from dataclasses import replace

import pytest
import torch
from torch import nn

from vidcsl.robustness.attacks import GOALS, PGD, SOLVERS
from vidcsl.robustness.attacks.answers import Judged
from vidcsl.robustness.sanity import Trial, check_attack
from vidcsl.robustness.targets import Clips, NeighbourVote
from vidcsl.robustness.threats import L2, Linf


class Net(nn.Module):
    """A smooth classifier of four classes."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.body = nn.Conv3d(3, 8, 3, padding=1)
            self.head = nn.Linear(8, 4)
        self.head.weight.data *= 40

    def forward(self, clips):
        return self.head(self.body(clips - 0.5).tanh().square().flatten(2).mean(2))


class Wrapped(nn.Module):
    def __init__(self, change):
        super().__init__()
        self.net, self.change = Net(), change

    def forward(self, clips):
        return self.change(self.net, clips)


def noisy(net, clips):
    return net(clips) + 3 * torch.rand(len(clips), 4)


def batch_dependent(net, clips):
    logits = net(clips)
    return logits - logits.mean(0)


def masked(_net, clips):
    """Sees roughness, which noise has, but its gradient only brightens the clip as a whole."""
    rough = (clips.diff(dim=-1).abs().mean((1, 2, 3, 4)) > 0.005).float().detach()
    leak = clips.mean((1, 2, 3, 4))
    no = torch.full_like(leak, -9.0)
    return torch.stack([0.5 - leak, rough + leak - leak.detach() - 0.2, no, no], dim=1)


def saturated(net, clips):
    return 1e4 * net(clips)


def wrong_way(net, clips):
    """Right logits with a gradient that leads back to the true class."""
    logits = net(clips)
    return 2 * logits.detach() - logits


MODELS = {
    "the model is deterministic": noisy,
    "a clip's output does not depend on its batch": batch_dependent,
    "the model gives logits": lambda net, clips: net(clips).softmax(1),
    "gradients are not zero": saturated,
    "a budget that allows everything leaves chance": wrong_way,
}


def trial(model, *, threat=None, solver=None, flat=False):
    generator = torch.Generator().manual_seed(1)
    clips = torch.rand(12, 3, 4, 8, 8, generator=generator)
    clips = torch.full_like(clips, 0.3) if flat else clips
    with torch.no_grad():
        labels = model.eval()(clips).argmax(1)
    held = Clips(clips, labels, range(12), range(12))
    goal = GOALS["cross_entropy"]
    return Trial([(model, held)], threat or Linf(0.06), solver or PGD(steps=10), goal)


def checks(model, **options):
    return {check["name"]: check for check in check_attack(trial(model, **options))}


@pytest.mark.parametrize("threat", [Linf(0.06), L2(1.5)], ids=["linf", "l2"])
def test_an_honest_attack_passes_every_check(threat):
    found = checks(Net(), threat=threat)
    assert len(found) == 12
    assert [check["seen"] for check in found.values() if not check["passed"]] == []
    attacked = trial(Net(), threat=threat)
    assert 0 < attacked.robust(attacked.solver) < 12  # a budget at which they could fail


@pytest.mark.parametrize("name", list(MODELS))
def test_each_check_fails_for_a_model_built_to_fail_it(name):
    found = checks(Wrapped(MODELS[name]))
    assert not found[name]["passed"], found[name]


def test_a_masked_gradient_is_found_by_what_needs_none():
    solver = PGD(steps=10, random_start=False)
    found = checks(Wrapped(masked), threat=Linf(0.05), solver=solver, flat=True)
    failed = [name for name, check in found.items() if not check["passed"]]
    assert failed == [
        "blind search (50 queries) does not beat the attack",
        "noise (10 draws) does not beat the attack",
    ]


def decoy(_net, clips):
    """A third class that never wins, but whose steep rise a cross-entropy follows."""
    up = clips.mean((1, 2, 3, 4)) - 0.3
    never = 10 * torch.minimum(-up, torch.full_like(up, 0.002)) - 0.03
    return torch.stack([torch.zeros_like(up), up - 0.02, never, torch.full_like(up, -9)], dim=1)


def test_a_goal_that_another_one_beats_is_found():
    options = {"threat": Linf(0.05), "solver": PGD(steps=10, random_start=False), "flat": True}
    found = checks(Wrapped(decoy), **options)
    assert not found["the goal margin does not beat this one"]["passed"]
    assert (
        "margin leaves 0 right, the attack 12"
        in found["the goal margin does not beat this one"]["seen"]
    )


class Timid(PGD):
    """Spends a tenth of the budget."""

    def __call__(self, problem):
        return super().__call__(problem) / 10


def test_a_budget_that_is_not_spent_is_found():
    found = checks(Net(), solver=Timid(steps=5), threat=L2(1.5))
    assert not found["the budget is spent"]["passed"]
    assert "10 % of what eps allows" in found["the budget is spent"]["seen"]


class Lost(NeighbourVote):
    """Has attacks ascend away from other classes."""

    @property
    def surrogates(self):
        return [Backwards(self)]


class Backwards(nn.Module):
    def __init__(self, votes):
        super().__init__()
        self.votes = votes
        self.training = votes.training

    def forward(self, clips):
        decision = self.votes(clips)
        return Judged(-decision, decision.detach())


@pytest.mark.parametrize("kind", [NeighbourVote, Lost])
@pytest.mark.parametrize("k", [1, 5])
def test_an_attack_on_a_vote_is_held_against_one_on_its_features(kind, k):
    encoder = Net().eval()
    shown = torch.rand(40, 3, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        gallery = nn.functional.normalize(encoder(shown), dim=1)
    votes = kind(encoder, gallery, torch.arange(40) % 4, classes=4, k=k)
    found = checks(votes, threat=Linf(0.02), solver=PGD(steps=5))
    names = ["the surrogate agrees with the vote"]
    names += ["a direct attack on the features does not beat this one"]
    assert [found[name]["passed"] for name in names] == [kind is NeighbourVote] * 2


class MoreHelps(PGD):
    """Loses its way after twelve steps."""

    def __call__(self, problem):
        return problem.zero() if self.steps > 12 else super().__call__(problem)


def test_an_attack_that_more_steps_weaken_is_found():
    found = checks(Net(), solver=MoreHelps(steps=10))
    assert not found["more steps never help the model"]["passed"]
    assert found["the steps are enough"]["passed"]


def test_an_attack_of_too_few_steps_is_found():
    found = checks(Net(), threat=Linf(0.08), solver=PGD(steps=2, step_size=0.01))
    assert not found["the steps are enough"]["passed"]


@pytest.mark.parametrize("name", ["square", "random_search"])
def test_a_search_that_gradients_beat_is_found(name):
    """It names its own weakness, also where the model is as healthy as can be."""
    check = "gradients (20 steps) do not beat this search"
    few = SOLVERS[name](queries=3)
    assert not checks(Net(), solver=few)[check]["passed"]
    # Where gradients lead nowhere, as at this model, the search is the better attack.
    held = {"threat": Linf(0.05), "flat": True}
    assert checks(Wrapped(masked), solver=SOLVERS[name](queries=50), **held)[check]["passed"]


def test_attacks_without_steps_are_not_compared():
    found = checks(Net(), solver=SOLVERS["random_noise"]())
    assert list(found)[-1] == "gradients are not zero"


def test_a_few_frames_need_not_reach_chance():
    found = checks(Net(), threat=Linf(0.02, frames="first:1"))
    assert "a budget that allows everything leaves chance" not in found


@pytest.mark.parametrize(("zeros", "passed"), [(0, True), (1, False)])
def test_a_gradient_that_is_zero_at_few_clips_is_found(zeros, passed):
    """One of twelve is more than a twentieth."""

    def change(net, clips):
        constant = torch.arange(len(clips)).view(-1, 1) < zeros
        return torch.where(
            constant & (len(clips) > 1), net(clips).detach() + 0 * net(clips), net(clips)
        )

    assert checks(Wrapped(change))["gradients are not zero"]["passed"] == passed


@pytest.mark.parametrize(("left", "more", "passed"), [(6, 5, True), (6, 4, False), (4, 6, True)])
def test_steps_are_enough_where_more_fool_a_tenth_at_most(monkeypatch, left, more, passed):
    robust = {10: left, 40: more}
    monkeypatch.setattr(
        Trial,
        "robust",
        lambda _, solver, __=None, goal=None: robust.get(getattr(solver, "steps", 0), 12),
    )
    assert checks(Net())["the steps are enough"]["passed"] == passed


@pytest.mark.parametrize("quantise", [False, True])
def test_a_trial_is_of_the_attack_that_is_checked(quantise):
    seen = []

    def solver(problem):
        seen.append((problem.goal, problem.quantise, list(problem.seeds)))
        return problem.zero()

    asked = replace(trial(Net()), quantise=quantise, goal=GOALS["margin"])
    other = replace(asked, goal=GOALS["cross_entropy"])
    assert asked.robust(solver) <= 12
    assert other.robust(solver) <= 12
    wanted = [(GOALS[name], quantise, list(range(12))) for name in ("margin", "cross_entropy")]
    assert seen == wanted
