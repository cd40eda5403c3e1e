"""Attacks: threat (what is allowed) x goal (what is maximised) x solver (how)."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from vidcsl.errors import UserError
from vidcsl.robustness.attacks.goals import GOALS, Goal
from vidcsl.robustness.attacks.pgd import PGD, RandomNoise
from vidcsl.robustness.attacks.problem import Problem, frozen
from vidcsl.robustness.threats import Threat

Solver = Callable[[Problem], Tensor]
SOLVERS: dict[str, Callable[..., Solver]] = {"pgd": PGD, "random_noise": RandomNoise}

__all__ = [
    "GOALS",
    "PGD",
    "SOLVERS",
    "Goal",
    "Problem",
    "RandomNoise",
    "Solver",
    "attack",
    "frozen",
]


def attack(
    model: nn.Module,
    clips: Tensor,
    labels: Tensor,
    *,
    threat: Threat,
    goal: str | Goal = "cross_entropy",
    solver: Solver,
    seeds: Sequence[int] | Tensor | None = None,
) -> Tensor:
    """Perturb clips, as the threat allows, so that the model mistakes them.

    The model is attacked in eval mode with its parameters frozen, and left exactly as it was.

    Args:
        model: from clips in [0, 1] to logits `[N, K]`; normalisation belongs inside it.
        clips: float32 or float64 `[N, 3, T, H, W]` (or images `[N, 3, H, W]`) in [0, 1].
        labels: integers `[N]`, the true classes.
        threat: which perturbations are allowed.
        goal: what is maximised: a name in `GOALS`, or a function (logits, labels) -> `[N]`.
        solver: how, for example `PGD(steps=20)`.
        seeds: `[N]`, one a clip (its index in the data set, say): what is random for a clip depends
            on its own seed, not on the batch. By default the position in the batch.

    Returns:
        The adversarial clips, with the shape, dtype and device of the clean ones. Each has been
        verified to keep within the threat.

    Raises:
        UserError: clips, labels, seeds, goal or model do not fit.
        BudgetExceeded: the solver left the threat (an error in the solver).
    """
    _check_inputs(clips, labels)
    seeds = range(len(clips)) if seeds is None else [int(seed) for seed in seeds]
    if len(seeds) != len(clips):
        raise UserError(f"{len(clips)} clips need as many seeds, not {len(seeds)}")
    if isinstance(goal, str):
        if goal not in GOALS:
            raise UserError(f"unknown attack goal {goal!r}: choose from {', '.join(sorted(GOALS))}")
        goal = GOALS[goal]
    # Evaluation code may call this in inference mode, whose tensors (labels, too) give no gradient.
    with torch.inference_mode(False), torch.no_grad(), frozen(model):
        problem = Problem(
            model=model,
            threat=threat,
            goal=goal,
            clips=clips.detach(),
            labels=labels.to(clips.device, torch.long, copy=True),
            mask=threat.mask(clips, seeds),
            seeds=seeds,
        )
        adversarial = problem.apply(solver(problem))
        threat.verify(problem.clips, adversarial, problem.mask)
    return adversarial


def _check_inputs(clips: Tensor, labels: Tensor) -> None:
    if clips.dtype not in (torch.float32, torch.float64):
        raise UserError(
            f"attacks need float32 or float64 clips, not {clips.dtype}: eps is too fine"
        )
    if clips.ndim not in (4, 5):
        raise UserError(f"attacks need clips [N, 3, T, H, W], not shape {list(clips.shape)}")
    if not ((clips >= 0) & (clips <= 1)).all():
        low, high = clips.min().item(), clips.max().item()
        raise UserError(
            f"attacks need clips in [0, 1], not {low:g} to {high:g}: normalise inside the model"
        )
    if labels.shape != clips.shape[:1] or labels.is_floating_point() or labels.is_complex():
        raise UserError(
            f"{len(clips)} clips need integer labels [N], not {labels.dtype} {list(labels.shape)}"
        )
