"""Attacks: threat (what is allowed) x goal (what is maximised) x solver (how).

One file per attack. `pgd.py` has PGD and the loop that all attacks by gradients share; `goals.py`
what can be maximised; `problem.py` what a solver is given; `answers.py` how the model is held
still and asked; `specs.py` reads attacks from a config;
`training.py` attacks inside a training step.
"""

import warnings
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vidcsl.errors import UserError
from vidcsl.robustness.attacks.adam import Adam
from vidcsl.robustness.attacks.answers import Model, answer, frozen, networks_of, surrogates_of
from vidcsl.robustness.attacks.apgd import APGD
from vidcsl.robustness.attacks.autoattack import AutoAttack
from vidcsl.robustness.attacks.fab import FAB
from vidcsl.robustness.attacks.goals import GOALS, Goal, goal_of
from vidcsl.robustness.attacks.noise import RandomNoise, RandomSearch
from vidcsl.robustness.attacks.pgd import FGSM, PGD, GradientAscent, MomentumPGD
from vidcsl.robustness.attacks.problem import SOLVERS, Problem, Solver, check_pair
from vidcsl.robustness.attacks.square import Square
from vidcsl.robustness.threats import LEVEL, BudgetExceeded, Threat, to_levels

__all__ = [
    "APGD",
    "FAB",
    "FGSM",
    "GOALS",
    "PGD",
    "SOLVERS",
    "Adam",
    "AutoAttack",
    "Goal",
    "GradientAscent",
    "MomentumPGD",
    "Problem",
    "RandomNoise",
    "RandomSearch",
    "Solver",
    "Square",
    "attack",
    "frozen",
]


def attack(
    model: Model,
    clips: Tensor,
    labels: Tensor | Sequence[int] | NDArray[np.integer] | None,
    *,
    threat: Threat,
    goal: str | Goal | Callable[[Tensor, Tensor], Tensor] = "cross_entropy",
    solver: Solver,
    seeds: Sequence[int] | Tensor | None = None,
    start: Tensor | None = None,
    quantise: bool = False,
) -> Tensor:
    """Perturb clips, as the threat allows, so that the model misclassifies them.

    The model is attacked in eval mode with its parameters frozen, and left exactly as it was; so is
    every network that a function of clips can reach.

    Args:
        model: from clips in [0, 1] to logits `[N, K]` (for goals on features, to features); any
            function of clips that torch can differentiate. Normalisation belongs inside it; it may
            change in place what it is given.
        clips: float32 or float64 `[N, 3, T, H, W]` (or images `[N, 3, H, W]`) in [0, 1].
        labels: integers `[N]`, the true classes; None for goals that need none.
        threat: which perturbations are allowed.
        goal: what is maximised: a name in `GOALS`, a goal, or a function (logits, labels) -> `[N]`.
        solver: how, for example `PGD(steps=20)`.
        seeds: `[N]`, one a clip (its index in the data set, say): what is random for a clip depends
            on its own seed, not on the batch. By default the position in the batch.
        start: clips `[N, ...]` at which the first run starts instead of a random start, for example
            the adversarial clips of a smaller budget.
        quantise: round the clips, and every clip that the model is shown, to 8 bits: the result
            holds exact multiples of 1/255, and differs from the *rounded* clips within the budget.

    Returns:
        The adversarial clips, with the shape, dtype and device of the clean ones. Each has been
        verified to keep within the threat.

    Raises:
        UserError: clips, labels, seeds, goal or model do not fit.
        BudgetExceeded: the solver left the threat (an error in the solver).
    """
    if isinstance(threat, type) or not hasattr(threat, "steepest_step"):
        raise UserError(
            f"a threat is needed, such as Linf(4 / 255), not {_named(threat, '4 / 255')}"
        )
    if isinstance(solver, type) or not callable(solver):
        raise UserError(f"a solver is needed, such as PGD(steps=20), not {_named(solver)}")
    check_pair(solver, threat)
    _check_clips(clips)
    given = torch.as_tensor([-1] * len(clips) if labels is None else labels)
    if given.shape != clips.shape[:1] or given.is_floating_point() or given.is_complex():
        raise UserError(
            f"{len(clips)} clips need integer labels [N], not {given.dtype} {list(given.shape)}"
        )
    seeds = range(len(clips)) if seeds is None else [int(seed) for seed in seeds]
    if len(seeds) != len(clips):
        raise UserError(f"{len(clips)} clips need as many seeds, not {len(seeds)}")
    if quantise and 0 < threat.eps < LEVEL * (1 - 1e-9):
        raise UserError(f"no 8-bit clip is within eps {threat.eps:g}, below 1/255 = {LEVEL:.5f}")
    if len(clips) == 0:
        return clips.clone()
    if any(network.training for network in networks_of(model)):
        warnings.warn("the model is in train mode: it is attacked in eval mode", stacklevel=2)
    # Evaluation code may call this in inference mode, whose tensors (labels, too) give no gradient.
    with torch.inference_mode(False), torch.no_grad(), frozen(model):
        clean = to_levels(clips) if quantise else clips.detach()
        if not isinstance(model, nn.Module):
            # What a function does to its networks cannot be seen, only what comes of it.
            once, again = (answer(model, clean).decision for _ in range(2))
            if not torch.allclose(once, again, rtol=1e-3, atol=1e-4 * float(once.abs().max())):
                warnings.warn(
                    "the attacked function is random: two passes over the same clips differ by "
                    f"{float((once - again).abs().max()):.2g}. Switch dropout off, or attack its "
                    "`Expectation` (vidcsl.robustness.targets)",
                    stacklevel=2,
                )
        warm = None
        if start is not None:
            # A delta of fewer numbers than the clips have (flicker, say) cannot be read off clips.
            if start.shape != clean.shape or threat.zero(clean).shape != clean.shape:
                name = type(threat).__name__
                raise UserError(f"{name} cannot start from clips {list(start.shape)}")
            warm = start.detach().to(clean) - clean
        adversarial, rows = clean, torch.arange(len(clean), device=clean.device)
        for surrogate in surrogates_of(model):
            problem = Problem.of(
                surrogate,
                threat,
                goal_of(goal),
                clean,
                given.to(clips.device, torch.long, copy=True),
                seeds=seeds,
                warm=warm,
                quantise=quantise,
            )
            # A surrogate attacks the clips that those before it left: the worst case of all.
            problem = problem.take(rows)
            delta = solver(problem)
            found = problem.apply(delta)
            threat.verify(problem.clips, found, problem.mask)
            if quantise:
                # Whole numbers need none of the tolerance that `verify` gives to floats.
                levels = (255 * (found - problem.clips).double()).round()
                if (threat.size(levels) > 255 * threat.eps * (1 + 1e-9)).any():
                    raise BudgetExceeded(f"{threat}: an 8-bit perturbation exceeds the budget")
            adversarial = adversarial.index_copy(0, rows, found)
            if surrogate is model:
                break
            rows = rows[~problem.reached(found)]
            if threat.shared or len(rows) == 0:
                break
    return adversarial


def _named(given: object, argument: str = "") -> str:
    """What was given instead of an instance."""
    if isinstance(given, type):
        return f"the class {given.__name__}: give an instance, {given.__name__}({argument})"
    return repr(given)


def _check_clips(clips: Tensor) -> None:
    if not isinstance(clips, Tensor):
        raise UserError(
            f"attacks need a tensor of clips, not {type(clips).__name__}: torch.from_numpy(clips)"
        )
    if clips.dtype not in (torch.float32, torch.float64):
        raise UserError(
            f"attacks need float32 or float64 clips, not {clips.dtype}: eps is too fine "
            "(`clips.float()`; bytes, also divided by 255)"
        )
    if clips.ndim not in (4, 5) or clips.shape[1] != 3:
        remedy = ""
        if clips.ndim == 5 and clips.shape[2] == 3:
            remedy = ": clips.transpose(1, 2)"
        elif clips.ndim == 5 and clips.shape[4] == 3:
            remedy = ": clips.permute(0, 4, 1, 2, 3)"
        elif clips.ndim == 4 and clips.shape[0] == 3:
            remedy = ": of one clip, clips[None]"
        shape = list(clips.shape)
        raise UserError(f"attacks need clips [N, 3, T, H, W], not shape {shape}{remedy}")
    if clips.ndim == 5 and clips.shape[2] == 3:
        warnings.warn(
            f"clips {list(clips.shape)} are taken as [N, 3, T, H, W], three colours and then three "
            "frames; if frames come first, attack clips.transpose(1, 2)",
            stacklevel=3,
        )
    if not ((clips >= 0) & (clips <= 1)).all():
        low, high = clips.min().item(), clips.max().item()
        raise UserError(
            f"attacks need clips in [0, 1], not {low:g} to {high:g}: normalise inside the model"
        )
