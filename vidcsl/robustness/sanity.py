"""Checks of an attack: a failed one means that the robustness it shows is overstated.

After Carlini et al., "On Evaluating Adversarial Robustness", 2019, and the signs of masked
gradients of Athalye et al., ICML 2018: an attack that more steps weaken, that a blind search, mere
noise or another goal beats, that leaves its budget unspent, or that fails even where everything is
allowed, proves nothing about the model.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from vidcsl.robustness.attack_curve import predict
from vidcsl.robustness.attacks import (
    GOALS,
    PGD,
    Goal,
    GradientAscent,
    Problem,
    RandomNoise,
    RandomSearch,
    Solver,
    Square,
    attack,
    frozen,
)
from vidcsl.robustness.attacks.answers import answer, surrogates_of
from vidcsl.robustness.attacks.goals import NeighbourSwitch
from vidcsl.robustness.attacks.square import searches
from vidcsl.robustness.targets import Clips, NeighbourVote
from vidcsl.robustness.threats import Ball, Threat, to_levels

MORE = 4  # times the steps
SEARCH = 5  # queries of the blind search for each step of the attack
NOISE = 10  # random draws
GRADIENTS = 20  # steps, where a search without them is checked
LUCK = 0.03  # of the clips, at least one: by how much equally good attacks differ
RIVALS = ("cross_entropy", "margin", "dlr")  # goals that are tried beside that of the attack
SPENT = 0.5  # of the budget, in the median clip: less is a sign of rounding or of lost gradients
CHECKS_VERSION = 2  # raised with every change of what is checked: cached findings are then redone
AGREEMENT = 0.8  # of the clips: what stands in for a vote must mostly name its class


@dataclass(frozen=True)
class Check:
    """One check.

    Args:
        name: what must hold, in a few words.
        passed: whether it did.
        seen: what was found, in a sentence.
    """

    name: str
    passed: bool
    seen: str


@dataclass(frozen=True)
class Trial:
    """Some clips that the model classifies correctly, and the attack that is checked on them.

    Args:
        groups: modules in eval mode with the clips that each takes.
        threat: at a budget that fools some of the clips, not all.
        solver, goal: the attack.
        quantise: whether it is held to 8 bits.
    """

    groups: Sequence[tuple[nn.Module, Clips]]
    threat: Threat
    solver: Solver
    goal: Goal
    quantise: bool = False

    @property
    def clips(self) -> int:
        """How many there are."""
        return sum(len(clips) for _, clips in self.groups)

    def attacked(
        self, solver: Solver, threat: Threat | None = None, goal: Goal | None = None
    ) -> Iterator[tuple[nn.Module, Clips, Tensor]]:
        """(model, clips, attacked clips) of each group, by this attack or with changes."""
        for model, clips in self.groups:
            found = attack(
                model,
                clips.clips,
                clips.labels,
                threat=threat or self.threat,
                goal=goal or self.goal,
                solver=solver,
                seeds=clips.seeds,
                quantise=self.quantise,
            )
            yield model, clips, found

    def robust(self, solver: Solver, threat: Threat | None = None, goal: Goal | None = None) -> int:
        """How many are still classified correctly under an attack."""
        return sum(
            int((predict(model, found) == clips.labels).sum())
            for model, clips, found in self.attacked(solver, threat, goal)
        )


def check_attack(trial: Trial) -> list[dict[str, Any]]:
    """Every check that applies, as `{"name", "passed", "seen"}`."""
    of_model = (check for model, clips in trial.groups[:1] for check in check_model(model, clips))
    return [asdict(check) for check in (*of_model, *check_search(trial), *check_vote(trial))]


def check_model(model: nn.Module, clips: Clips) -> Iterator[Check]:
    """Whether an attack can rely on the outputs of the model."""
    # TF32 convolutions of a GPU round by the shape of the batch, more than a check can bear.
    exact = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
    with torch.no_grad(), frozen(model), exact:
        # Copies: many models normalise in place what they are given.
        once, again = model(clips.clips.clone()), model(clips.clips.clone())
        alone = torch.cat([model(clip[None].clone()) for clip in clips.clips])
    scale = once.abs().amax().clamp_min(1e-6)
    differs = float((once - again).abs().amax() / scale)
    yield Check(
        "the model is deterministic",
        differs < 1e-4,
        f"two outputs for the same clips differ by {differs:.2g} of the largest logit",
    )
    mixes = float((once - alone).abs().amax() / scale)
    yield Check(
        "a clip's output does not depend on its batch",
        mixes < 1e-3 or differs >= 1e-4,  # a random model would fail both for one reason
        f"outputs alone and in a batch differ by {mixes:.2g} of the largest logit",
    )
    sums = once.sum(dim=1)
    is_softmax = bool((once >= 0).all() and (sums - 1).abs().amax() < 1e-3)
    yield Check(
        "the model gives logits",
        not is_softmax,
        "its outputs are "
        + ("probabilities: the softmax hides gradients" if is_softmax else "no probabilities"),
    )


def check_search(trial: Trial) -> Iterator[Check]:
    """Whether the attack searches as well as its budget allows."""
    zeros = 0
    for model, clips in trial.groups:
        with torch.inference_mode(False), torch.no_grad(), frozen(model):
            given = (trial.threat, trial.goal, clips.clips.clone(), clips.labels.clone())
            problem = Problem.of(surrogates_of(model)[0], *given, seeds=clips.seeds)
            gradient = problem.gradient_at(problem.clips)
        zeros += int((gradient.flatten(1).abs().amax(dim=1) == 0).sum())
    yield Check(
        "gradients are not zero",
        zeros <= 0.05 * trial.clips,
        f"the gradient is zero at {zeros} of {trial.clips} clips",
    )
    steps = getattr(trial.solver, "steps", None)
    if isinstance(trial.solver, Square | RandomSearch):
        # Even on a linear model these fall short of what a budget allows (docs/attacks.md).
        left = trial.robust(trial.solver)
        found = trial.robust(PGD(steps=GRADIENTS))
        yield Check(
            f"gradients ({GRADIENTS} steps) do not beat this search",
            found >= left - max(1, LUCK * trial.clips),
            f"of {trial.clips} clips, gradients leave {found} right, the search {left}",
        )
    if steps is None:
        return  # what follows compares an attack by gradients with others
    left = trial.robust(trial.solver)
    with_changes: Callable[..., Solver] = replace
    more = trial.robust(with_changes(trial.solver, steps=MORE * steps))
    yield Check(
        "more steps never help the model",
        more <= left,
        f"of {trial.clips} clips, {steps} steps leave {left} right, {MORE * steps} leave {more}",
    )
    yield Check(
        "the steps are enough",
        left - more <= max(1, 0.1 * trial.clips),
        f"{MORE} times the steps fool {max(0, left - more)} more of {trial.clips} clips",
    )
    search = Square if searches(trial.threat) else RandomSearch
    blind: dict[str, Solver] = {
        f"blind search ({SEARCH * steps} queries)": search(queries=SEARCH * steps),
        f"noise ({NOISE} draws)": RandomNoise(NOISE),
    }
    for name, solver in blind.items():
        found = trial.robust(solver)
        yield Check(
            f"{name} does not beat the attack",
            found >= left,
            f"of {trial.clips} clips, {name} leaves {found} right, the attack {left}",
        )
    luck = max(1, LUCK * trial.clips)
    for name in RIVALS if trial.goal in [GOALS[each] for each in (*RIVALS, "hinge")] else ():
        rival = GOALS[name]
        if rival is trial.goal or (name == "dlr" and classes_of(trial) < 3):
            continue
        found = trial.robust(trial.solver, goal=rival)
        yield Check(
            f"the goal {name} does not beat this one",
            found >= left - luck,
            f"of {trial.clips} clips, {name} leaves {found} right, the attack {left}",
        )
    if isinstance(trial.solver, GradientAscent) and not trial.threat.shared:
        ratios = [ratio for group in trial.attacked(trial.solver) for ratio in spent(trial, *group)]
        ratio = float(torch.tensor(ratios).median()) if ratios else 1.0
        yield Check(
            "the budget is spent",
            ratio >= SPENT,
            f"{100 * ratio:.0f} % of what eps allows, in the median of {len(ratios)} clips still "
            "right",
        )
    # An attack that may turn any clip into grey must succeed. What may change only some pixels, or
    # one colour of a frame, cannot.
    threat, (model, clips) = trial.threat, trial.groups[0]
    everywhere = isinstance(threat, Ball) and threat.frames == threat.region == "all"
    if not everywhere or threat.zero(clips.clips).shape != clips.clips.shape:
        return
    assert isinstance(threat, Ball)
    largest = float(threat.size(torch.full_like(clips.clips[:1], 0.5)).amax())
    left = trial.robust(trial.solver, replace(threat, eps=largest))
    yield Check(
        "a budget that allows everything leaves chance",
        left <= max(1, trial.clips / classes_of(trial)),
        f"at eps {largest:.3g}, {left} of {trial.clips} clips stay right",
    )


def classes_of(trial: Trial) -> int:
    """How many classes the model has."""
    model, clips = trial.groups[0]
    with torch.no_grad():
        return int(model(clips.clips[:1].clone()).shape[1])


def spent(trial: Trial, model: nn.Module, clips: Clips, attacked: Tensor) -> list[float]:
    """Of the clips that stay right: the size of the change, as a ratio of what is allowed."""
    threat = trial.threat
    clean = to_levels(clips.clips) if trial.quantise else clips.clips
    with torch.no_grad():
        mask = threat.mask(
            clean,
            clips.seeds,
            Problem.of(model, threat, trial.goal, clean, clips.labels, seeds=clips.seeds),
        )
    far = torch.where(mask, torch.maximum(clean, 1 - clean), 0.0)  # as far as the box lets it be
    allowed = threat.size(far).clamp(max=threat.eps).view(len(clean), -1).sum(dim=1)
    used = threat.size(attacked - clean).view(len(clean), -1).sum(dim=1)
    right = predict(model, attacked) == clips.labels
    return (used / allowed.clamp_min(1e-12))[right].tolist()


def check_vote(trial: Trial) -> Iterator[Check]:
    """Whether an attack on a vote of neighbours is as strong as one on the features themselves."""
    votes = [(model, clips) for model, clips in trial.groups if isinstance(model, NeighbourVote)]
    if not votes or getattr(trial.solver, "steps", None) is None or trial.threat.shared:
        return
    with torch.no_grad():
        named = [
            [answer(surrogate, clips.clips).logits.argmax(1) for surrogate in surrogates_of(model)]
            for model, clips in votes
        ]
    right = [
        float((each == clips.labels).float().sum())
        for (_, clips), several in zip(votes, named, strict=True)
        for each in several
    ]
    asked = sum(len(clips) * len(found) for (_, clips), found in zip(votes, named, strict=True))
    agree = sum(right) / max(1, asked)
    yield Check(
        "the surrogate agrees with the vote",
        agree >= AGREEMENT,
        f"it names the vote's class for {100 * agree:.0f} % of the clips",
    )
    left = direct = 0
    names = {field.name for field in fields(trial.solver)}  # type: ignore[arg-type]
    change: Callable[..., Solver] = replace
    # To its end: its own idea of fooled is not the vote's.
    whole = {"stop_when_fooled": False} if "stop_when_fooled" in names else {}
    for model, clips in votes:
        known = model.one_hot.argmax(dim=1)
        fewest = int(known.bincount()[known.unique()].min())
        near = max(1, min(model.k // 2 + 1, fewest, len(known) // 2))
        options: dict[str, Any] = {
            "threat": trial.threat,
            "seeds": clips.seeds,
            "quantise": trial.quantise,
        }
        given = (clips.clips, clips.labels)
        ours = attack(model, *given, goal=trial.goal, solver=trial.solver, **options)
        goal = NeighbourSwitch(model.gallery, known, near)
        theirs = attack(
            model.encoder, *given, goal=goal, solver=change(trial.solver, **whole), **options
        )
        left += int((predict(model, ours) == clips.labels).sum())
        direct += int((predict(model, theirs) == clips.labels).sum())
    yield Check(
        "a direct attack on the features does not beat this one",
        direct >= left - max(1, LUCK * trial.clips),
        f"of {trial.clips} clips, switching neighbours leaves {direct} right, the attack {left}",
    )
