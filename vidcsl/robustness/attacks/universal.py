"""Universal perturbations: one delta, fitted on some clips, that is to fool the model on others."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from vidcsl.errors import UserError
from vidcsl.robustness.attacks.answers import Model, frozen, surrogates_of
from vidcsl.robustness.attacks.goals import Goal
from vidcsl.robustness.attacks.pgd import PGD
from vidcsl.robustness.attacks.problem import Problem
from vidcsl.robustness.targets import Clips
from vidcsl.robustness.threats import Universal, to_levels
from vidcsl.seeding import seed_of
from vidcsl.state import weights_digest


def fit_universal(
    model: nn.Module, batches: Sequence[Clips], *, threat: Universal, goal: Goal, solver: PGD
) -> Tensor:
    """One delta `[1, ...]` that raises the goal on all batches.

    Steepest ascent, a step a batch, as stochastic PGD (Mummadi et al. 2019), with steps that shrink
    linearly to nothing; a cyclic delta meets each clip at another moment in each pass.

    Args:
        model: clips -> logits.
        batches: what it is fitted on, `solver.steps` passes over them.
        threat: which delta is allowed.
        goal: what is maximised, in the mean over a batch.
        solver: its step size is that of the first step.

    Raises:
        UserError: there are no clips to fit it on.
    """
    if not batches:
        raise UserError("a universal perturbation needs clips to be fitted on: there are none")
    with torch.inference_mode(False), torch.no_grad(), frozen(model):
        delta, total = None, solver.steps * len(batches)
        surrogate = surrogates_of(model)[0]  # one delta cannot be the worst case of several
        for turn in range(total):
            sweep, number = divmod(turn, len(batches))
            problem = problem_of(surrogate, batches[number], threat, goal, sweep=sweep)
            if delta is None:
                delta = problem.start(0) if solver.random_start else problem.zero()
            step = solver.size_of_step(threat.eps) * (1 - turn / total)
            _, gradient = problem.differentiate(delta)
            ascent = threat.steepest_step(problem.clips, delta, gradient, step, problem.mask)
            delta = problem.project(delta + ascent)
    assert delta is not None
    return delta


def problem_of(model: Model, batch: Clips, threat: Universal, goal: Goal, *, sweep: int) -> Problem:
    """A batch as the problem of one pass: each pass draws new seeds, and so new cyclic shifts."""
    seeds = [seed_of(seed, sweep, "universal") for seed in batch.seeds]
    # Clones, as tensors made in inference mode give no gradient.
    return Problem.of(model, threat, goal, batch.clips.clone(), batch.labels.clone(), seeds=seeds)


@dataclass
class UniversalAttack:
    """An attack whose delta is fitted once for a model, on other clips than those it attacks.

    Args:
        training: gives the clips to fit on.
        quantise: the clips are rounded to 8 bits, and so is the delta.
    """

    training: Callable[[], Iterable[Clips]]
    threat: Universal
    goal: Goal
    solver: PGD
    quantise: bool = False
    _fitted: dict[str, Tensor] = field(default_factory=dict, repr=False)

    def __call__(
        self,
        model: nn.Module,
        clips: Tensor,
        labels: Tensor,
        seeds: Sequence[int],
        start: Tensor | None = None,
    ) -> Tensor:
        """The clips with the delta, verified to keep its budget; labels and start play no part."""
        key = weights_digest(model)
        if key not in self._fitted:
            self._fitted[key] = fit_universal(
                model,
                list(self.training()),
                threat=self.threat,
                goal=self.goal,
                solver=self.solver,
            )
        delta = self._fitted[key]
        if self.quantise:
            clips = to_levels(clips)
            whole = self.threat.quantise(clips, delta)
            adversarial = to_levels(self.threat.perturb(clips, whole, seeds))
        else:
            adversarial = self.threat.perturb(clips, delta, seeds)
        self.threat.verify(clips, adversarial, self.threat.mask(clips, seeds))
        return adversarial
