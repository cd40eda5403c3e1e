"""FAB (Croce & Hein 2020): the nearest point across the decision boundary, by linear steps."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from vidcsl.errors import UserError
from vidcsl.robustness.attacks.goals import GOALS
from vidcsl.robustness.attacks.problem import SOLVERS, Problem, Worst, per_row
from vidcsl.robustness.threats import L1, L2, Linf, Threat
from vidcsl.robustness.threats.norms import water_level

OVERSHOOT, BIAS, BACKWARD = 1.05, 0.1, 0.9  # eta, alpha_max and beta of the paper


@SOLVERS.register("fab", "the nearest point across the boundary (Croce & Hein 2020)")
@dataclass(frozen=True)
class FAB:
    """Fast adaptive boundary, for goals that are positive exactly where they are reached.

    Such are `margin` (each step looks for the class whose boundary is nearest, by the gradients of
    all: a backward pass a class) and `targeted_margin` (FAB-T, one pass a step). Each step
    goes to the boundary of the goal's linear model, drawn a little to the clean clip; once across,
    it comes back. The points may be anywhere in the box, but only those in the budget count; a clip
    is left alone once one is found.

    Args:
        steps: linear steps.
    """

    default_goal: ClassVar[str] = "margin"
    VERSION: ClassVar[int] = 2  # untargeted, it follows the nearest class
    steps: int = 100

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UserError(f"FAB needs 1 or more steps, not {self.steps}")

    def refuses(self, threat: Threat) -> str | None:
        """Why a threat cannot be searched."""
        if knows(threat):
            return None
        return f"fab supports linf, l2 and l1 over the whole clip, not {threat}"

    def __call__(self, problem: Problem) -> Tensor:
        """The delta of each row that fools the model within the budget; elsewhere none."""
        if problem.goal is GOALS["cross_entropy"]:
            raise UserError("FAB needs a goal that is positive where reached, such as margin")
        clean = problem.zero()
        worst = Worst(clean, problem.evaluate(clean))
        rows = worst.robust()
        part = problem.take(rows)
        delta = part.zero()

        def offer(hopeful: Tensor) -> None:
            """Offer those of the deltas that keep the budget."""
            inside = part.threat.size(delta) <= part.threat.eps
            chosen = (hopeful & inside).nonzero()[:, 0]
            if len(chosen):
                found = part.take(chosen).evaluate(delta[chosen])
                worst.offer(rows[chosen], delta[chosen], found)

        for _ in range(self.steps):
            if len(rows) == 0:
                break
            # Points beyond the budget must be seen as they are, unrounded and uncut.
            seen = replace(part, quantise=False)
            found, gradient = seen.differentiate(delta)
            goal, beyond = found.goal, found.goal > 0
            if problem.goal is GOALS["margin"]:
                goal, gradient = nearest_boundary(seen, delta)
            offer(beyond)
            left = (~worst.fooled[rows]).nonzero()[:, 0]
            rows, part, delta, gradient = rows[left], part.take(left), delta[left], gradient[left]
            goal = goal[left].to(delta.dtype)
            across = per_row(beyond[left], delta)
            delta = torch.where(across, BACKWARD * delta, delta)
            delta = step_to_boundary(part, delta, goal, gradient, across)
        if len(rows):
            offer(torch.ones_like(rows, dtype=torch.bool))
        return worst.delta


def nearest_boundary(part: Problem, delta: Tensor) -> tuple[Tensor, Tensor]:
    """Of the linear boundaries to all other classes the nearest: its logit difference and normal.

    Not that of the largest other logit: the boundary of a steep logit may be nearer (equation 7 of
    the paper, |f_l - f_c| / ||grad (f_l - f_c)||_q).

    Args:
        part: the rows still attacked.
        delta: where they are.

    Returns:
        Differences `[R]`, and their gradients with the shape of delta.
    """
    with torch.enable_grad():
        clips = part.apply(delta).detach().requires_grad_(True)
        logits = part.outputs(clips)
        differences = logits - logits.gather(1, part.labels[:, None])
        totals = [each.sum() for each in differences.unbind(1)]
    differences = differences.detach()
    nearest = torch.full_like(logits[:, 0], torch.inf).detach()
    goal, normal = torch.zeros_like(nearest), torch.zeros_like(delta)
    for label, total in enumerate(totals):
        (gradient,) = torch.autograd.grad(total, clips, retain_graph=True)
        gradient = part.threat.pull_back(part.clips, delta, gradient, part.seeds)
        felt = torch.where(part.mask, gradient, 0.0).flatten(1).abs()
        dual = DUALS[type(part.threat)](felt).clamp_min(torch.finfo(felt.dtype).tiny)
        distance = differences[:, label].abs() / dual
        closer = (distance < nearest) & (part.labels != label)
        nearest = torch.where(closer, distance, nearest)
        goal = torch.where(closer, differences[:, label], goal)
        normal = torch.where(per_row(closer, delta), gradient, normal)
    return goal, normal


def step_to_boundary(
    part: Problem, delta: Tensor, goal: Tensor, gradient: Tensor, across: Tensor
) -> Tensor:
    """From delta and from the clean clip to the boundary's plane; between both, nearer to delta.

    Args:
        part: the rows still attacked.
        delta: where a row is across the boundary, already drawn back by `BACKWARD`.
        goal: at the delta where the gradient was taken, before it was drawn back, [R].
        gradient: of the goal, with the shape of delta.
        across: which rows are, bool, broadcastable to delta.
    """
    nearest, clips = NEAREST[type(part.threat)], part.clips
    normal = torch.where(part.mask, gradient, 0.0)
    # The plane passes where the goal, linear from the point of the gradient, is zero.
    there = torch.where(across, delta / BACKWARD, delta)
    level = goal - (normal * there).flatten(1).sum(dim=1)
    steps = []
    for point in (delta, torch.zeros_like(delta)):
        gain = -(level + (normal * point).flatten(1).sum(dim=1))
        direction = normal * per_row(gain.sign(), normal)
        room = torch.where(direction > 0, 1 - clips - point, clips + point).clamp_min(0)
        sizes = nearest(direction.flatten(1).abs(), room.flatten(1), gain.abs())
        steps.append(sizes.view_as(point) * direction.sign())
    here, clean = (part.threat.size(step) for step in steps)
    bias = per_row((here / (here + clean).clamp_min(1e-12)).clamp(max=BIAS), delta)
    mixed = (1 - bias) * (delta + OVERSHOOT * steps[0]) + bias * OVERSHOOT * steps[1]
    return torch.minimum(torch.maximum(mixed, -clips), 1 - clips)


Nearest = Callable[[Tensor, Tensor, Tensor], Tensor]
"""`(normal, room, gain) [R, n], [R, n], [R] -> [R, n]`: the smallest step that gains so much."""


def nearest_linf(weights: Tensor, room: Tensor, gain: Tensor) -> Tensor:
    """All numbers move by the same amount, as far as their room goes."""
    return torch.minimum(water_level(weights, weights * room, gain), room)


def nearest_l2(weights: Tensor, room: Tensor, gain: Tensor) -> Tensor:
    """Each number moves in proportion to its weight, as far as its room goes."""
    # In units of the largest weight: the squares of a confident model's gradients underflow.
    largest = weights.amax(dim=1, keepdim=True).clamp_min(torch.finfo(weights.dtype).tiny)
    weights, gain = weights / largest, gain / largest[:, 0]
    level = water_level(weights.square(), weights * room, gain)
    return torch.minimum((level * weights).nan_to_num(0.0, posinf=torch.inf), room)


def nearest_l1(weights: Tensor, room: Tensor, gain: Tensor) -> Tensor:
    """The numbers with the largest weights use up their room, one after the other."""
    felt, order = weights.sort(dim=1, descending=True)
    caps = felt * room.gather(1, order)
    left = (gain[:, None] - (caps.cumsum(dim=1) - caps)).clamp_min(0)
    taken = torch.minimum(caps, left) / felt.clamp_min(torch.finfo(felt.dtype).tiny)
    return torch.zeros_like(room).scatter(1, order, taken)


NEAREST: dict[type[Any], Nearest] = {Linf: nearest_linf, L2: nearest_l2, L1: nearest_l1}
DUALS: dict[type[Any], Callable[[Tensor], Tensor]] = {
    Linf: lambda felt: felt.sum(dim=1),
    L2: lambda felt: torch.linalg.vector_norm(felt, dim=1),
    L1: lambda felt: felt.amax(dim=1),
}


def knows(threat: Threat) -> bool:
    """Whether FAB can find nearest points in this threat's norm."""
    return type(threat) in NEAREST and getattr(threat, "over", "clip") == "clip"
