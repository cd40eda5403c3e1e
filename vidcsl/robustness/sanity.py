"""Is the attack to be believed? Cheap checks whose failure means that robustness is overstated.

After Carlini et al., "On Evaluating Adversarial Robustness", 2019, and the signs of masked
gradients of Athalye et al., ICML 2018: an attack that more steps weaken, that a blind search or
mere noise beats, or that fails even where everything is allowed, says nothing about the model.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from vidcsl.robustness.attack_curve import predict
from vidcsl.robustness.attacks import SOLVERS, Goal, Solver, attack, frozen
from vidcsl.robustness.attacks.problem import Problem
from vidcsl.robustness.attacks.square import RandomNoise, RandomSearch
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
        seen: what was seen, in a sentence.
    """

    name: str
    passed: bool
    seen: str


@dataclass(frozen=True)
class Trial:
    """Some clips that the model gets right, and the attack that is to be checked on them.

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

    def standing(self, solver: Solver, threat: Threat | None = None) -> int:
        """How many are still right under an attack."""
        threat = threat or self.threat
        return sum(self._standing(*group, solver, threat) for group in self.groups)

    def _standing(self, model: nn.Module, clips: Clips, solver: Solver, threat: Threat) -> int:
        attacked = attack(
            *(model, clips.clips, clips.labels),
            threat=threat,
            goal=self.goal,
            solver=solver,
            seeds=clips.seeds,
            quantise=self.quantise,
        )
        return int((predict(model, attacked) == clips.labels).sum())


def check_attack(trial: Trial) -> list[dict[str, Any]]:
    """Every check that applies, as `{"name", "passed", "seen"}`."""
    of_model = (check for model, clips in trial.groups[:1] for check in _check_model(model, clips))
    return [asdict(check) for check in (*of_model, *_check_gradient_attack(trial))]


def _check_model(model: nn.Module, clips: Clips) -> Iterator[Check]:
    # TF32 convolutions of a GPU round by the shape of the batch, more than a check can bear.
    exact = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
    with torch.no_grad(), frozen(model), exact:
        once, again = model(clips.clips), model(clips.clips)
        alone = torch.cat([model(clip[None]) for clip in clips.clips])
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


def _check_gradient_attack(trial: Trial) -> Iterator[Check]:
    zeros = sum(_zero_gradients(trial, model, clips) for model, clips in trial.groups)
    yield Check(
        "gradients are not zero",
        zeros <= 0.05 * trial.clips,
        f"the gradient is zero at {zeros} of {trial.clips} clips",
    )
    steps = getattr(trial.solver, "steps", None)
    if steps is None:
        return  # what follows compares an attack by gradients with others
    left = trial.standing(trial.solver)
    more = trial.standing(_with(trial.solver, steps=MORE * steps))
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
    for name, blind in _blind(steps).items():
        found = trial.standing(blind)
        yield Check(
            f"{name} does not beat the attack",
            found >= left,
            f"of {trial.clips} clips, {name} leaves {found} right, the attack {left}",
        )
    yield from _check_everything_allowed(trial)


def _blind(steps: int) -> dict[str, Solver]:
    queries = SEARCH * steps
    search = SOLVERS["square"](queries=queries) if "square" in SOLVERS else RandomSearch(queries)
    return {
        f"blind search ({queries} queries)": search,
        f"noise ({NOISE} draws)": RandomNoise(NOISE),
    }


def _check_everything_allowed(trial: Trial) -> Iterator[Check]:
    """An attack that may turn any clip into grey must succeed."""
    threat, (model, clips) = trial.threat, trial.groups[0]
    is_whole = isinstance(threat, Ball) and threat.frames == threat.region == "all"
    if not is_whole or threat.zero(clips.clips).shape != clips.clips.shape:
        return
    assert isinstance(threat, Ball)
    largest = float(threat.size(torch.full_like(clips.clips[:1], 0.5)).amax())
    left = trial.standing(trial.solver, replace(threat, eps=largest))
    classes = _classes(model, clips)
    yield Check(
        "a budget that allows everything leaves chance",
        left <= max(1, trial.clips / classes),
        f"at eps {largest:.3g}, {left} of {trial.clips} clips stay right",
    )


@torch.no_grad()
def _classes(model: nn.Module, clips: Clips) -> int:
    """How many classes a model knows."""
    return int(model(clips.clips[:1]).shape[1])


def _zero_gradients(trial: Trial, model: nn.Module, clips: Clips) -> int:
    with torch.inference_mode(False), torch.no_grad(), frozen(model):
        problem = Problem.of(
            model,
            trial.threat,
            trial.goal,
            clips.clips.clone(),
            clips.labels.clone(),
            seeds=clips.seeds,
        )
        gradient: Tensor = problem.gradient_at(problem.clips)
    return int((gradient.flatten(1).abs().amax(dim=1) == 0).sum())


def _with(solver: Solver, **changes: Any) -> Solver:
    change: Callable[..., Solver] = replace
    return change(solver, **changes)
