"""Square (Andriushchenko et al. 2020): random search with squares, by the model's outputs alone."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vidcsl.errors import UserError
from vidcsl.robustness.attacks.problem import SOLVERS, Problem, Worst, per_row
from vidcsl.robustness.threats import L2, FrameSparse, Linf, Threat, Universal
from vidcsl.robustness.threats.threat import draw, uniform

HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # of 10,000 queries
NUMBERS = 11  # that a query draws for each row: two blocks of 4, and a colour of 3


@SOLVERS.register("square", "random search by squares, queries only (Andriushchenko et al. 2020)")
@dataclass(frozen=True)
class Square:
    """Each query repaints a square (of a clip: a block of squares in successive frames).

    It is kept where it raises the goal. For Linf, each colour of the block goes to plus or minus
    eps. For L2, the block takes over the budget of another one. For other threats, the block's
    colours would spend all of the budget, before the projection.

    Args:
        queries: forward passes a clip.
        share: ratio of the pixels that the first blocks change.
        stop_when_fooled: leave a clip alone once it is misclassified.
    """

    default_goal: ClassVar[str] = "margin"
    queries: int = 5000
    share: float = 0.8
    stop_when_fooled: bool = True

    def __post_init__(self) -> None:
        if self.queries < 1 or not 0 < self.share <= 1:
            raise UserError(f"Square needs 1 or more queries and a share in (0, 1]: {self}")

    def refuses(self, threat: Threat) -> str | None:
        """Why a threat cannot be searched: repainted blocks make no use of budgets of frames."""
        if searches(threat):
            return None
        return f"square supports linf, l2, l1 and flicker over the whole clip, not {threat}"

    def __call__(self, problem: Problem) -> Tensor:
        """The worst delta found for each row."""
        clean = problem.zero()
        unchanged = problem.evaluate(clean)
        worst = Worst(clean.clone(), unchanged.take(problem.rows))
        # All at once: a call of a generator costs more than its numbers.
        generators = problem.generators("square")
        stripes = draw(uniform, (len(clean), 3, clean.shape[-1]), generators).to(clean)
        numbers = draw(uniform, (len(clean), self.queries, NUMBERS), generators).to(clean)
        reach = reach_of(problem)
        rows, part = problem.rows, problem
        for query in range(self.queries):
            left = worst.robust(rows) if self.stop_when_fooled else rows
            if len(left) < len(rows):
                rows, part = left, problem.take(left)
            if len(rows) == 0:
                break
            if query == 0:
                # The search starts at vertical stripes, the same in all frames, whatever they do.
                signs = (stripes[rows] - 0.5).sign()
                signs = signs.view(len(rows), 3, *[1] * (clean.ndim - 3), -1).expand_as(part.zero())
                delta = part.project(_spending(part, torch.where(part.mask, signs, 0.0)))
                worst.put(rows, delta, part.evaluate(delta))
            else:
                ratio, propose = ratio_at(query, self.queries, self.share), paint_block
                if type(part.threat) is L2:
                    propose = move_budget
                delta = propose(part, worst.delta[rows], ratio, numbers[rows, query], reach[rows])
                delta = part.project(delta)
                worst.offer(rows, delta, part.evaluate(delta))
        worst.offer(problem.rows, clean, unchanged)
        return worst.delta


def searches(threat: Threat) -> bool:
    """Whether repainting blocks makes use of a threat's budget."""
    ball = threat.ball if isinstance(threat, Universal) else threat
    return not isinstance(ball, FrameSparse) and getattr(ball, "over", "clip") == "clip"


def ratio_at(query: int, queries: int, first: float) -> float:
    """The ratio of pixels that query number `query` changes: halved nine times on the way."""
    at = query / queries * 10_000
    return float(first / 2 ** sum(at > halving for halving in HALVINGS))


def paint_block(
    part: Problem, delta: Tensor, ratio: float, numbers: Tensor, reach: Tensor
) -> Tensor:
    """One block in one colour of full strength.

    Args:
        part: R rows of the problem.
        delta: the worst so far.
        ratio: of the pixels to repaint.
        numbers: uniform in [0, 1), [R, 11].
        reach: see `reach_of`.
    """
    block = random_block(part, delta, ratio, numbers[:, :4], reach)
    colours = (numbers[:, 8:] - 0.5).sign().view(-1, 3, *[1] * (delta.ndim - 2))
    if type(part.threat) is Linf:
        return torch.where(block, part.threat.eps * colours, delta)
    return torch.where(block, _spending(part, torch.where(block, colours, 0.0)), delta)


def move_budget(
    part: Problem, delta: Tensor, ratio: float, numbers: Tensor, reach: Tensor
) -> Tensor:
    """One block takes the budget of another, for more of its own change and of one colour.

    The arguments are those of `paint_block`.
    """
    block = random_block(part, delta, ratio, numbers[:, :4], reach)
    other = random_block(part, delta, ratio, numbers[:, 4:8], reach)
    colours = (numbers[:, 8:] - 0.5).sign().view(-1, 3, *[1] * (delta.ndim - 2))
    # Both of unit length, as in the paper: the block keeps half of what it has found.
    own = _unit(torch.where(block, delta, 0.0)) + _unit(torch.where(block, colours, 0.0))
    # What the rest of the clip leaves of the budget, to which both blocks contribute.
    spent = torch.where(block | other, 0.0, delta).flatten(1).square().sum(dim=1)
    free = (part.threat.eps**2 - spent).clamp_min(0).sqrt()
    moved = torch.where(block, per_row(free, delta) * _unit(own), delta)
    return torch.where(other & ~block, 0.0, moved)


def random_block(
    part: Problem, delta: Tensor, ratio: float, numbers: Tensor, reach: Tensor
) -> Tensor:
    """A block somewhere within what may change, bool `[R, 1, T, H, W]` (of images without T).

    It lasts a random number of frames, and is as wide as the ratio of the pixels then asks for.

    Args:
        part, delta, ratio, reach: as of `paint_block`.
        numbers: uniform in [0, 1), [R, 4]: duration, then place along T, H and W.
    """
    first, counts = reach.unbind(2)  # [R, 3]
    lasting = (numbers[:, :1] * counts[:, :1]).floor() + 1
    side = (ratio * counts.prod(dim=1, keepdim=True) / lasting).sqrt().round().clamp(min=1)
    lengths = torch.minimum(torch.cat([lasting, side, side], dim=1), counts)
    begin = first + (numbers[:, 1:] * (counts - lengths + 1)).floor()
    block = part.mask
    for axis in range(-1, 1 - delta.ndim, -1):  # W, H and, of clips, T
        position = torch.arange(delta.shape[axis], device=delta.device)
        after, before = begin[:, axis, None], (begin + lengths)[:, axis, None]
        along = (position >= after) & (position < before)
        shape = [len(delta), *[1] * (delta.ndim - 1)]
        shape[axis] = -1
        block = block & along.view(shape)
    return block


def reach_of(problem: Problem) -> Tensor:
    """`[R, 3, 2]`: along T, H and W, where what may change begins and how far it reaches."""
    zero = problem.zero()
    free = problem.mask.expand(len(zero), 1, *zero.shape[2:])
    free = free.reshape(len(zero), -1, *zero.shape[-2:])  # [R, T, H, W]
    found = []
    for axis in (1, 2, 3):
        along = free.any(dim=[each for each in (3, 2, 1) if each != axis]).to(zero.dtype)
        first = along.argmax(dim=1)
        last = along.shape[1] - 1 - along.flip(1).argmax(dim=1)
        found.append(torch.stack([first, last - first + 1], dim=1))
    return torch.stack(found, dim=1).to(zero.dtype)


def _spending(part: Problem, pattern: Tensor) -> Tensor:
    """The pattern as strong as eps allows, were there no box."""
    sizes = part.threat.size(pattern).view(len(pattern), -1).amax(dim=1)
    strength = part.threat.eps / sizes.clamp_min(torch.finfo(pattern.dtype).tiny)
    return per_row(strength, pattern) * pattern


def _unit(delta: Tensor) -> Tensor:
    norms = torch.linalg.vector_norm(delta.flatten(1), dim=1)
    return delta / per_row(norms.clamp_min(torch.finfo(delta.dtype).tiny), delta)
