"""What a solver is given, and the loop of gradient ascent."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from vidcsl.errors import UserError
from vidcsl.robustness.attacks.goals import Goal
from vidcsl.robustness.threats import Threat, to_levels
from vidcsl.seeding import torch_generator

# ----------------------------------------------------------------------
# What every solver is given, and what it keeps: the problem, and the worst clips found so far.

Model = Callable[[Tensor], Tensor]


@contextmanager
def frozen(model: Model) -> Iterator[None]:
    """The model in eval mode and without parameter gradients; afterwards exactly as it was.

    A model that is no module, but a function of clips, is taken as it is.
    """
    root = model if isinstance(model, nn.Module) else nn.Identity()
    modes = [(module, module.training) for module in root.modules()]
    trainable = [parameter for parameter in root.parameters() if parameter.requires_grad]
    try:
        root.eval()
        for parameter in trainable:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
        for module, training in modes:
            module.training = training


@dataclass(frozen=True)
class Verdict:
    """What the model makes of some deltas: `goal` float [R], `fooled` bool [R]."""

    goal: Tensor
    fooled: Tensor

    def take(self, rows: Tensor) -> "Verdict":
        """The chosen rows."""
        return Verdict(self.goal[rows], self.fooled[rows])


@dataclass(frozen=True)
class Problem:
    """Clips [N, ...] in [0, 1] with labels [N], under one model, threat and goal.

    A solver moves deltas of R rows: one a clip or, where the threat shares one among all, one row,
    which is judged by its mean over the clips. `mask` is what the threat lets change, `reference`
    what the goal remembers of each clip; `seeds` (N of them) decide all that is random. `warm` is
    where the first run begins, if anywhere; with `quantise`, clips are only ever seen in 8 bits.
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
        cls, model: Model, threat: Threat, goal: Goal, clips: Tensor, labels: Tensor, **rest: object
    ) -> "Problem":
        """The problem, with what the goal and the threat want to see of the model."""
        everything = torch.ones(len(clips), *[1] * (clips.ndim - 1)).bool().to(clips.device)
        problem = cls(model, threat, goal, clips, labels, labels, everything, **rest)  # type: ignore[arg-type]
        problem = problem.aim(goal)
        return replace(problem, mask=threat.mask(clips, problem.seeds, problem))

    def classes(self) -> int:
        """How many numbers the model puts out for a clip."""
        return self._outputs(self.clips[:1]).shape[1]

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
        reference = goal.prepare(lambda: self._outputs(self.clips), self.labels)
        return replace(self, goal=goal, reference=reference)

    def zero(self) -> Tensor:
        """The delta that changes nothing."""
        return self.threat.zero(self.clips)

    def apply(self, delta: Tensor) -> Tensor:
        """The perturbed clips."""
        if not self.quantise:
            return self.threat.perturb(self.clips, delta, self.seeds)
        return to_levels(self.threat.perturb(self.clips, self.threat.quantise(delta), self.seeds))

    def start(self, restart: int) -> Tensor:
        """Where a run begins: warm, or at random, from each row's seed and the restart alone."""
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

    def climb(self, delta: Tensor, step: float | Tensor, gradient: Tensor) -> Tensor:
        """Delta after one projected step of steepest ascent."""
        ascent = self.threat.steepest_step(self.clips, delta, gradient, step, self.mask)
        return self.project(delta + ascent)

    def judge(self, delta: Tensor) -> Verdict:
        """One forward pass."""
        with torch.no_grad():
            return self._pooled(self._verdict(self.apply(delta)))

    def differentiate(self, delta: Tensor) -> tuple[Verdict, Tensor]:
        """One forward and backward pass: the verdict, and the goal's gradient at the delta."""
        verdict, gradient = self._differentiate(self.apply(delta))
        return self._pooled(verdict), self.threat.pull_back(self.clips, delta, gradient, self.seeds)

    def goal_at(self, clips: Tensor) -> Tensor:
        """The goal [N] at any clips, by one forward pass."""
        with torch.no_grad():
            return self._verdict(clips).goal

    def gradient_at(self, clips: Tensor) -> Tensor:
        """The goal's gradient at any clips, by one forward and backward pass."""
        return self._differentiate(clips)[1]

    def _differentiate(self, clips: Tensor) -> tuple[Verdict, Tensor]:
        clips = clips.detach().requires_grad_(True)
        with torch.enable_grad():
            verdict = self._verdict(clips)
            total = verdict.goal.sum()
        # Outside a caller's autocast, which would round what the forward pass kept in float32.
        with torch.autocast(clips.device.type, enabled=False):
            (gradient,) = (
                torch.autograd.grad(total, clips, allow_unused=True)
                if total.requires_grad
                else (None,)
            )
        if gradient is None:
            raise UserError(
                "no gradient reaches the clips: the attacked model cuts it off (detach?)"
            )
        if not gradient.isfinite().all():
            raise UserError(
                "the gradient at the clips is not finite: check the model and its dtype"
            )
        return Verdict(verdict.goal.detach(), verdict.fooled), gradient

    def _verdict(self, clips: Tensor) -> Verdict:
        outputs = self._outputs(clips)
        goal = self.goal.value(outputs, self.labels, self.reference)
        if goal.shape != self.labels.shape:
            raise UserError(f"a goal must give one number a clip, not shape {list(goal.shape)}")
        return Verdict(goal, self.goal.reached(outputs.detach(), self.labels, self.reference))

    def _outputs(self, clips: Tensor) -> Tensor:
        outputs = self.model(clips)
        if not isinstance(outputs, Tensor) or outputs.ndim != 2 or len(outputs) != len(clips):
            found = list(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
            raise UserError(f"the attacked model must return logits [{len(clips)}, K], not {found}")
        if not outputs.isfinite().all():
            raise UserError("the model's logits are not finite: check its weights and its dtype")
        # Losses of half-precision logits (a model under autocast) would be too coarse to compare.
        return outputs.to(torch.promote_types(outputs.dtype, torch.float32))

    def _pooled(self, verdict: Verdict) -> Verdict:
        if not self.threat.shared or len(verdict.goal) == 0:
            return verdict
        return Verdict(verdict.goal.mean(0, keepdim=True), verdict.fooled.all(0, keepdim=True))


class Worst:
    """The worst delta so far for each row: one that fools the model, then the highest goal."""

    def __init__(self, delta: Tensor, verdict: Verdict) -> None:
        self.delta, self.goal, self.fooled = delta, verdict.goal, verdict.fooled

    def offer(self, rows: Tensor, delta: Tensor, verdict: Verdict) -> None:
        """Keep each of these deltas, which belong to `rows` [R], if it is worse for the model."""
        fooled = self.fooled[rows]
        higher = verdict.goal > self.goal[rows]
        worse = (verdict.fooled & ~fooled) | ((verdict.fooled == fooled) & higher)
        self.put(rows[worse], delta[worse], verdict.take(worse))

    def put(self, rows: Tensor, delta: Tensor, verdict: Verdict) -> None:
        """Keep these deltas, whatever they are."""
        self.delta[rows], self.goal[rows], self.fooled[rows] = delta, verdict.goal, verdict.fooled

    def standing(self, rows: Tensor | None = None) -> Tensor:
        """The rows (of these, or of all) that fool no one yet."""
        if rows is None:
            return (~self.fooled).nonzero()[:, 0]
        return rows[~self.fooled[rows]]


# ----------------------------------------------------------------------
# The loop of every attack by gradients; its kinds differ in what they make of a gradient.

State = dict[str, Tensor]
"""What a run remembers, by name; row r of each tensor belongs to row r of delta."""


def default_step_size(eps: float, steps: int) -> float:
    """A quarter of eps; more where so few steps could not cross the ball, whose width is 2 eps.

    On video classifiers the best step grows about linearly with eps, by 0.23-0.33 eps for eps from
    1/255 to 8/255. Madry et al. take 2.5 eps / steps.
    """
    return max(0.25 * eps, 2.5 * eps / max(steps, 1))


@dataclass(frozen=True)
class Ascent(ABC):
    """Ascent of the goal within the threat, by the gradient.

    Of all deltas seen on the way, none at all among them, each clip keeps the worst: more steps of
    the same size or more restarts never make the attack weaker.

    Args:
        steps: gradient steps in a run.
        restarts: runs, each from another random start.
        random_start: begin anywhere in the threat rather than at the clean clip.
        stop_when_fooled: leave a clip alone once it is misclassified, from the clean pass on. The
            robust accuracy is the same and most of the time is saved; set it False for clips that
            maximise the goal itself, as training and transfer want.
        keep_worst: False: the last delta of one run, whatever it does, as training wants it: two
            forward passes fewer, and rows whose goals depend on each other's deltas stay together.
    """

    steps: int = 20
    restarts: int = 1
    random_start: bool = True
    stop_when_fooled: bool = True
    keep_worst: bool = True

    def __post_init__(self) -> None:
        name = type(self).__name__
        if self.steps < 1 or self.restarts < 1:
            raise UserError(f"{name} needs 1 or more steps and restarts, not {self}")
        if self.restarts > 1 and not self.random_start:
            raise UserError(f"{name} restarts without random_start would all be the same run")
        if not self.keep_worst and (self.restarts > 1 or self.stop_when_fooled):
            raise UserError(
                f"{name} with keep_worst=false makes one whole run: restarts=1, "
                "stop_when_fooled=false"
            )

    @abstractmethod
    def begin(self, problem: Problem, delta: Tensor) -> State:
        """What a run remembers, at its start."""

    @abstractmethod
    def advance(
        self,
        problem: Problem,
        step: int,
        delta: Tensor,
        seen: tuple[Verdict, Tensor],
        state: State,
    ) -> Tensor:
        """The next delta after `step` steps, from the verdict and gradient at this one."""

    def __call__(self, problem: Problem) -> Tensor:
        """The worst delta found for each row, or the last."""
        if not self.keep_worst:
            return self._last(problem)
        clean = problem.zero()
        worst = Worst(clean, problem.judge(clean))
        for restart in range(self.restarts):
            rows = worst.standing() if self.stop_when_fooled else problem.rows
            if len(rows):
                self._run(problem.take(rows), restart, rows, worst)
        return worst.delta

    def _first(self, problem: Problem, restart: int) -> Tensor:
        """Where a run begins."""
        start = self.random_start or problem.warm is not None
        return problem.start(restart) if start else problem.zero()

    def _last(self, problem: Problem) -> Tensor:
        """Where a run ends."""
        delta = self._first(problem, 0)
        state = self.begin(problem, delta)
        for step in range(self.steps):
            delta = self.advance(problem, step, delta, problem.differentiate(delta), state)
        return delta

    def _run(self, part: Problem, restart: int, rows: Tensor, worst: Worst) -> None:
        """One run for these rows, which shows every delta on its way to `worst`."""
        delta = self._first(part, restart)
        state = self.begin(part, delta)
        for step in range(self.steps):
            verdict, gradient = part.differentiate(delta)
            worst.offer(rows, delta, verdict)
            if self.stop_when_fooled and verdict.fooled.any():
                right = (~verdict.fooled).nonzero()[:, 0]
                rows, part, delta = rows[right], part.take(right), delta[right]
                verdict, gradient = verdict.take(right), gradient[right]
                state = {name: values[right] for name, values in state.items()}
                if len(rows) == 0:
                    return
            delta = self.advance(part, step, delta, (verdict, gradient), state)
        worst.offer(rows, delta, part.judge(delta))


def per_row(values: Tensor, like: Tensor) -> Tensor:
    """One number a row, [R], shaped to broadcast with a delta."""
    return values.view(-1, *[1] * (like.ndim - 1))


def like_rows(value: float, delta: Tensor) -> Tensor:
    """The same number for each row, [R]."""
    return torch.full((len(delta),), value, dtype=delta.dtype, device=delta.device)
