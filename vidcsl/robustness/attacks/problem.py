"""What every solver is given, and what it keeps: the problem, and the worst deltas found so far."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vidcsl.errors import UserError
from vidcsl.registry import Registry
from vidcsl.robustness.attacks.answers import Model, answer
from vidcsl.robustness.attacks.goals import Goal
from vidcsl.robustness.threats import Threat, to_levels
from vidcsl.seeding import torch_generator

Solver = Callable[["Problem"], Tensor]
"""A search: from a problem to one delta a row."""


def check_pair(solver: Solver, threat: Threat) -> None:
    """Raise UserError where a solver cannot search a threat as well as others do."""
    reason = getattr(solver, "refuses", lambda _: None)(threat)
    if reason:
        raise UserError(reason)


SOLVERS: Registry[Callable[..., Solver]] = Registry(
    "ATTACK.RUNS", default="pgd", meaning="how an attack searches"
)


@dataclass(frozen=True)
class Evaluation:
    """The model's response to some deltas: `goal` float [R], `fooled` bool [R]."""

    goal: Tensor
    fooled: Tensor

    def take(self, rows: Tensor) -> "Evaluation":
        """The chosen rows, by index or bool mask."""
        return Evaluation(self.goal[rows], self.fooled[rows])


@dataclass(frozen=True)
class Problem:
    """Clips under one model, threat and goal.

    A solver moves a delta of R rows. R is the number of clips N; or 1 where the threat shares one
    delta among all clips, whose goal is then the mean over the clips.

    Args:
        model: is evaluated without parameter gradients.
        threat: which deltas are allowed.
        goal: what is maximised.
        clips: [N, ...] in [0, 1].
        labels: int64 [N].
        reference: what the goal keeps of each clip, see `Goal.prepare`.
        mask: what may change, see `Threat.mask`.
        seeds: N of them; they alone decide all that is random.
        warm: the delta at which the first run starts, instead of a random one.
        quantise: the model only ever sees 8-bit clips.
    """

    model: Model
    threat: Threat
    goal: Goal
    clips: Tensor
    labels: Tensor
    reference: Tensor
    mask: Tensor
    seeds: Sequence[int]
    warm: Tensor | None = None
    quantise: bool = False

    @classmethod
    def of(
        cls,
        model: Model,
        threat: Threat,
        goal: Goal,
        clips: Tensor,
        labels: Tensor,
        *,
        seeds: Sequence[int],
        warm: Tensor | None = None,
        quantise: bool = False,
    ) -> "Problem":
        """Make a problem: the goal prepares its reference, the threat chooses its mask.

        The mask comes last, because frames may be chosen by what the model makes of them.
        """
        # Until the mask is chosen everything may change: choosing it may take gradients.
        everything = torch.ones(len(clips), *[1] * (clips.ndim - 1)).bool().to(clips.device)
        given = cls(model, threat, goal, clips, labels, labels, everything, seeds, warm, quantise)
        aimed = given.aim(goal)
        return replace(aimed, mask=threat.mask(clips, seeds, aimed))

    @property
    def rows(self) -> Tensor:
        """The rows of a delta, 0 .. R-1."""
        count = min(len(self.clips), 1) if self.threat.shared else len(self.clips)
        return torch.arange(count, device=self.clips.device)

    def take(self, rows: Tensor) -> "Problem":
        """The same problem for some of the rows of a delta."""
        if self.threat.shared:
            return self
        return replace(
            self,
            clips=self.clips[rows],
            labels=self.labels[rows],
            reference=self.reference[rows],
            mask=self.mask[rows],
            seeds=[self.seeds[row] for row in rows.tolist()],
            warm=None if self.warm is None else self.warm[rows],
        )

    def aim(self, goal: Goal) -> "Problem":
        """The same problem under another goal."""
        reference = goal.prepare(lambda: self.outputs(self.clips), self.labels)
        return replace(self, goal=goal, reference=reference)

    def zero(self) -> Tensor:
        """The delta that changes nothing."""
        return self.threat.zero(self.clips)

    def start(self, restart: int) -> Tensor:
        """Where a run starts: warm, or at random, from each row's seed and the restart alone."""
        if restart == 0 and self.warm is not None:
            return self.project(self.warm)
        generators = self.generators(restart, "attack start")
        return self.threat.start(self.clips, self.mask, generators)

    def generators(self, *purpose: int | str) -> list[torch.Generator]:
        """One for each row, from its seed and the purpose alone."""
        return [torch_generator(self.seeds[row], *purpose) for row in self.rows.tolist()]

    def project(self, delta: Tensor) -> Tensor:
        """An allowed delta near the given one."""
        return self.threat.project(self.clips, delta, self.mask)

    def apply(self, delta: Tensor) -> Tensor:
        """The perturbed clips."""
        if not self.quantise:
            return self.threat.perturb(self.clips, delta, self.seeds)
        whole = self.threat.quantise(self.clips, delta)
        return to_levels(self.threat.perturb(self.clips, whole, self.seeds))

    def evaluate(self, delta: Tensor) -> Evaluation:
        """One forward pass."""
        with torch.no_grad():
            return self._pooled(self._evaluate(self.apply(delta)))

    def differentiate(self, delta: Tensor) -> tuple[Evaluation, Tensor]:
        """One forward and backward pass: the evaluation, and the goal's gradient at the delta."""
        found, gradient = self._differentiate(self.apply(delta))
        return self._pooled(found), self.threat.pull_back(self.clips, delta, gradient, self.seeds)

    def goal_at(self, clips: Tensor) -> Tensor:
        """The goal [N] at any clips, by one forward pass."""
        with torch.no_grad():
            return self._evaluate(clips).goal

    def reached(self, clips: Tensor) -> Tensor:
        """Which clips are fooled, bool [N], at any clips, by one forward pass."""
        with torch.no_grad():
            return self._evaluate(clips).fooled

    def gradient_at(self, clips: Tensor) -> Tensor:
        """The goal's gradient at any clips, by one forward and backward pass."""
        return self._differentiate(clips)[1]

    def outputs(self, clips: Tensor) -> Tensor:
        """The model's outputs at any clips, see `answer`."""
        return answer(self.model, clips).logits

    def _evaluate(self, clips: Tensor) -> Evaluation:
        outputs, decision = answer(self.model, clips)
        goal = self.goal.value(outputs, self.labels, self.reference)
        if goal.shape != self.labels.shape:
            raise UserError(f"a goal must give one number a clip, not shape {list(goal.shape)}")
        return Evaluation(goal, self.goal.reached(decision.detach(), self.labels, self.reference))

    def _differentiate(self, clips: Tensor) -> tuple[Evaluation, Tensor]:
        # A leaf of its own, so that no graph of the caller's is followed.
        clips = clips.detach().requires_grad_(True)
        gradient = None
        # Callers evaluate under no_grad, and attack there.
        with torch.enable_grad():
            found = self._evaluate(clips)
            total = found.goal.sum()
        # Outside a caller's autocast, which would round what the forward pass kept in float32.
        with torch.autocast(clips.device.type, enabled=False):
            if total.requires_grad:
                (gradient,) = torch.autograd.grad(total, clips, allow_unused=True)
        if gradient is None:
            raise UserError(
                "no gradient reaches the clips: the attacked model cuts it off (detach?)"
            )
        if not gradient.isfinite().all():
            raise UserError(
                "the gradient at the clips is not finite: check the model and its dtype"
            )
        return Evaluation(found.goal.detach(), found.fooled), gradient

    def _pooled(self, found: Evaluation) -> Evaluation:
        """One row for a shared delta: it fools only where it fools the model on every clip."""
        if not self.threat.shared or len(found.goal) == 0:
            return found
        return Evaluation(found.goal.mean(0, keepdim=True), found.fooled.all(0, keepdim=True))


class Worst:
    """The worst delta so far for each row: one that fools the model, then the highest goal."""

    def __init__(self, delta: Tensor, found: Evaluation) -> None:
        self.delta, self.goal, self.fooled = delta, found.goal, found.fooled

    def offer(self, rows: Tensor, delta: Tensor, found: Evaluation) -> None:
        """Keep each of these deltas, which belong to `rows` [R], if it is worse for the model."""
        fooled = self.fooled[rows]
        higher = found.goal > self.goal[rows]
        # Fooling comes first: such a delta is never given up for a higher goal that does not fool.
        worse = (found.fooled & ~fooled) | ((found.fooled == fooled) & higher)
        self.put(rows[worse], delta[worse], found.take(worse))

    def put(self, rows: Tensor, delta: Tensor, found: Evaluation) -> None:
        """Keep these deltas, whatever they are."""
        self.delta[rows], self.goal[rows], self.fooled[rows] = delta, found.goal, found.fooled

    def robust(self, rows: Tensor | None = None) -> Tensor:
        """The rows, of these or of all, on which no delta fools the model yet."""
        if rows is None:
            return (~self.fooled).nonzero()[:, 0]
        return rows[~self.fooled[rows]]


def per_row(values: Tensor, like: Tensor) -> Tensor:
    """One number a row, [R], shaped to broadcast with a delta."""
    return values.view(-1, *[1] * (like.ndim - 1))


def like_rows(value: float, delta: Tensor) -> Tensor:
    """The same number for each row, [R]."""
    return torch.full((len(delta),), value, dtype=delta.dtype, device=delta.device)
