"""Checks of an attack: a failed one means that the robustness it shows is overstated.

After Carlini et al., "On Evaluating Adversarial Robustness", 2019, and the signs of masked
gradients of Athalye et al., ICML 2018: an attack that more steps weaken, that a blind search or
mere noise beats, or that fails even where everything is allowed, proves nothing about the model.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import nn

from vidcsl.robustness.attack_curve import predict
from vidcsl.robustness.attacks import Goal, Problem, RandomNoise, Solver, Square, attack, frozen
from vidcsl.robustness.targets import Clips
from vidcsl.robustness.threats import Ball, Threat

MORE = 4  # times the steps
SEARCH = 5  # queries of the blind search for each step of the attack
NOISE = 10  # random draws


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

    def robust(self, solver: Solver, threat: Threat | None = None) -> int:
        """How many are still classified correctly under an attack."""
        count = 0
        for model, clips in self.groups:
            attacked = attack(
                model,
                clips.clips,
                clips.labels,
                threat=threat or self.threat,
                goal=self.goal,
                solver=solver,
                seeds=clips.seeds,
                quantise=self.quantise,
            )
            count += int((predict(model, attacked) == clips.labels).sum())
        return count


def check_attack(trial: Trial) -> list[dict[str, Any]]:
    """Every check that applies, as `{"name", "passed", "seen"}`."""
    of_model = (check for model, clips in trial.groups[:1] for check in check_model(model, clips))
    return [asdict(check) for check in (*of_model, *check_search(trial))]


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
        f"two answers to the same clips differ by {differs:.2g} of the largest logit",
    )
    mixes = float((once - alone).abs().amax() / scale)
    yield Check(
        "a clip's answer does not depend on its batch",
        mixes < 1e-3 or differs >= 1e-4,  # a random model would fail both for one reason
        f"answers alone and in a batch differ by {mixes:.2g} of the largest logit",
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
            problem = Problem.of(model, *given, seeds=clips.seeds)
            gradient = problem.gradient_at(problem.clips)
        zeros += int((gradient.flatten(1).abs().amax(dim=1) == 0).sum())
    yield Check(
        "gradients are not zero",
        zeros <= 0.05 * trial.clips,
        f"the gradient is zero at {zeros} of {trial.clips} clips",
    )
    steps = getattr(trial.solver, "steps", None)
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
    blind: dict[str, Solver] = {
        f"blind search ({SEARCH * steps} queries)": Square(queries=SEARCH * steps),
        f"noise ({NOISE} draws)": RandomNoise(NOISE),
    }
    for name, solver in blind.items():
        found = trial.robust(solver)
        yield Check(
            f"{name} does not beat the attack",
            found >= left,
            f"of {trial.clips} clips, {name} leaves {found} right, the attack {left}",
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
    with torch.no_grad():
        classes = model(clips.clips[:1].clone()).shape[1]
    yield Check(
        "a budget that allows everything leaves chance",
        left <= max(1, trial.clips / classes),
        f"at eps {largest:.3g}, {left} of {trial.clips} clips stay right",
    )
