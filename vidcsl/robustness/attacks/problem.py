"""What every solver is given, and what it keeps: the problem, and the worst clips found so far."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from vidcsl.errors import UserError
from vidcsl.robustness.attacks.goals import Goal
from vidcsl.robustness.threats import Threat
from vidcsl.seeding import torch_generator


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """The model in eval mode and without parameter gradients; afterwards exactly as it was."""
    modes = [(module, module.training) for module in model.modules()]
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        model.eval()
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
    """What the model makes of some clips: `goal` float [N], `fooled` bool [N]."""

    goal: Tensor
    fooled: Tensor


@dataclass(frozen=True)
class Problem:
    """Clips [N, ...] in [0, 1] with labels [N], under one model, threat and goal.

    `mask` is what the threat lets change; `seeds` (N of them) decide all that is random.
    """

    model: nn.Module
    threat: Threat
    goal: Goal
    clips: Tensor
    labels: Tensor
    mask: Tensor
    seeds: Sequence[int]

    def take(self, rows: Tensor) -> "Problem":
        """The same problem for some of the clips."""
        return replace(
            self,
            clips=self.clips[rows],
            labels=self.labels[rows],
            mask=self.mask[rows],
            seeds=[self.seeds[row] for row in rows.tolist()],
        )

    def apply(self, delta: Tensor) -> Tensor:
        """The perturbed clips; the clamp takes off what the addition's rounding put on."""
        return (self.clips + delta).clamp(0, 1)

    def start(self, restart: int) -> Tensor:
        """A random allowed delta, for each clip from its own seed and the restart alone."""
        generators = [torch_generator(seed, restart, "attack start") for seed in self.seeds]
        return self.threat.start(self.clips, self.mask, generators)

    def climb(self, delta: Tensor, step: float | Tensor, gradient: Tensor) -> Tensor:
        """Delta after one projected step of steepest ascent."""
        ascent = self.threat.steepest_step(gradient, step, self.mask)
        return self.threat.project(self.clips, delta + ascent, self.mask)

    @torch.no_grad()
    def judge(self, delta: Tensor) -> Verdict:
        """One forward pass."""
        return self._verdict(self.apply(delta))

    def differentiate(self, delta: Tensor) -> tuple[Verdict, Tensor]:
        """One forward and backward pass: the verdict, and the goal's gradient at the clips."""
        clips = self.apply(delta).requires_grad_(True)
        with torch.enable_grad():
            verdict = self._verdict(clips)
            total = verdict.goal.sum()
        (gradient,) = (
            torch.autograd.grad(total, clips, allow_unused=True) if total.requires_grad else (None,)
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
        logits = check_logits(self.model(clips), self.labels)
        # Losses of half-precision logits (a model under autocast) would be too coarse to compare.
        goal = self.goal(logits.to(torch.promote_types(logits.dtype, torch.float32)), self.labels)
        if goal.shape != self.labels.shape:
            raise UserError(f"a goal must give one number a clip, not shape {list(goal.shape)}")
        return Verdict(goal, logits.argmax(dim=1) != self.labels)


def check_logits(logits: Tensor, labels: Tensor) -> Tensor:
    """The same logits, if finite and [N, K], with K >= 2 classes that include the labels."""
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(labels):
        found = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise UserError(f"the attacked model must return logits [{len(labels)}, K], not {found}")
    classes = logits.shape[1]
    if classes < 2 or ((labels < 0) | (labels >= classes)).any():
        raise UserError(
            f"labels {labels.unique().tolist()} do not fit a model of {classes} classes"
        )
    if not logits.isfinite().all():
        raise UserError("the model's logits are not finite: check its weights and its dtype")
    return logits


class Worst:
    """The worst delta so far for each clip: one that fools the model, then the highest goal."""

    def __init__(self, delta: Tensor, verdict: Verdict) -> None:
        self.delta, self.goal, self.fooled = delta, verdict.goal, verdict.fooled

    def offer(self, rows: Tensor, delta: Tensor, verdict: Verdict) -> None:
        """Keep each of these deltas, which belong to `rows` [R], if it is worse for the model."""
        fooled = self.fooled[rows]
        higher = verdict.goal > self.goal[rows]
        worse = (verdict.fooled & ~fooled) | ((verdict.fooled == fooled) & higher)
        kept = rows[worse]
        self.delta[kept] = delta[worse]
        self.goal[kept] = verdict.goal[worse]
        self.fooled[kept] = verdict.fooled[worse]
