"""Attacks without gradients: noise, random search, Square."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vidcsl.errors import UserError
from vidcsl.robustness.attacks.problem import Problem, Worst, per_row
from vidcsl.robustness.threats import L2, Linf
from vidcsl.robustness.threats.threat import draw, uniform

# ----------------------------------------------------------------------
# Random draws, the floor under every attack; and a search by them.


@dataclass(frozen=True)
class RandomNoise:
    """The worst of some random draws from the threat: what any attack must beat.

    With one draw, its accuracy is simply that under noise: a clip that noise puts right counts.
    """

    draws: int = 1

    def __post_init__(self) -> None:
        if self.draws < 1:
            raise UserError(f"random noise needs 1 or more draws, not {self.draws}")

    def __call__(self, problem: Problem) -> Tensor:
        """The worst delta drawn for each row."""
        problem = replace(problem, warm=None)  # only its own draws count
        delta = problem.start(0)
        worst = Worst(delta, problem.judge(delta))
        for number in range(1, self.draws):
            delta = problem.start(number)
            worst.offer(problem.rows, delta, problem.judge(delta))
        return worst.delta


@dataclass(frozen=True)
class RandomSearch:
    """A walk that keeps each random step which raises the goal: no gradient, no model's inside.

    Args:
        queries: forward passes a clip.
        share: of a fresh random draw mixed into each step, from 0 to 1; it falls to a tenth.
        stop_when_fooled: leave a clip alone once it is misclassified.
    """

    queries: int = 100
    share: float = 0.5
    stop_when_fooled: bool = True

    def __post_init__(self) -> None:
        if self.queries < 1 or not 0 < self.share <= 1:
            raise UserError(f"random search needs 1 or more queries and a share in (0, 1]: {self}")

    def __call__(self, problem: Problem) -> Tensor:
        """The worst delta found for each row."""
        clean = problem.zero()
        worst = Worst(clean, problem.judge(clean))
        for query in range(self.queries - 1):
            rows = worst.standing() if self.stop_when_fooled else problem.rows
            if len(rows) == 0:
                break
            part, share = problem.take(rows), self.share * 0.1 ** (query / self.queries)
            step = part.start(query)
            delta = part.project((1 - share) * worst.delta[rows] + share * step)
            if query == 0:
                delta = step
            worst.offer(rows, delta, part.judge(delta))
        return worst.delta


# ----------------------------------------------------------------------
# Square (Andriushchenko et al. 2020): random search with squares, which sees outputs alone.

HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # of 10,000 queries


def share_at(query: int, queries: int, first: float) -> float:
    """The share of the pixels that query number `query` changes: halved nine times on the way."""
    at = query / queries * 10_000
    return float(first / 2 ** sum(at > halving for halving in HALVINGS))


@dataclass(frozen=True)
class Square:
    """Each query repaints a square (of a clip: a block of squares in successive frames).

    It is kept where it raises the goal. For Linf, each colour of the block goes to plus or minus
    eps. For L2, the block takes over the budget of another one. For other threats, the block's
    colours would spend all of the budget, before the projection.

    Args:
        queries: forward passes a clip.
        share: of the pixels that the first blocks change.
        stop_when_fooled: leave a clip alone once it is misclassified.
    """

    queries: int = 5000
    share: float = 0.8
    stop_when_fooled: bool = True

    def __post_init__(self) -> None:
        if self.queries < 1 or not 0 < self.share <= 1:
            raise UserError(f"Square needs 1 or more queries and a share in (0, 1]: {self}")

    def __call__(self, problem: Problem) -> Tensor:
        """The worst delta found for each row."""
        clean = problem.zero()
        unchanged = problem.judge(clean)
        worst = Worst(clean.clone(), unchanged.take(problem.rows))
        dice = _Dice.throw(problem, self.queries)
        rows, part = problem.rows, problem
        for query in range(self.queries):
            standing = worst.standing(rows) if self.stop_when_fooled else rows
            if len(standing) < len(rows):
                rows, part = standing, problem.take(standing)
            if len(rows) == 0:
                break
            if query == 0:  # whatever the stripes do, they are where the search begins
                delta = part.project(_stripes(part, dice.stripes[rows]))
                worst.put(rows, delta, part.judge(delta))
            else:
                delta = self._proposal(part, worst.delta[rows], query, dice.of(rows, query))
                worst.offer(rows, delta, part.judge(delta))
        worst.offer(problem.rows, clean, unchanged)
        return worst.delta

    def _proposal(self, part: Problem, delta: Tensor, query: int, dice: "_Throw") -> Tensor:
        share = share_at(query, self.queries, self.share)
        propose = _move if type(part.threat) is L2 else _paint
        return part.project(propose(part, delta, share, dice))


@dataclass(frozen=True)
class _Throw:
    """What is random in one query: blocks [2, R, 4] in [0, 1), colours [R, 3], -1 or 1.

    `reach` [R, 3, 2] is where the pixels that may change begin, and how far they reach, along T, H
    and W.
    """

    blocks: Tensor
    colours: Tensor
    reach: Tensor


@dataclass(frozen=True)
class _Dice:
    """All that is random in a search, drawn at once: a call of a generator costs more than numbers.

    `stripes` [R, 3, W] and `numbers` [R, queries, 11].
    """

    stripes: Tensor
    numbers: Tensor
    reach: Tensor

    @classmethod
    def throw(cls, problem: Problem, queries: int) -> "_Dice":
        """For each row from its own seed."""
        zero, generators = problem.zero(), problem.generators("square")
        stripes = draw(uniform, (len(zero), 3, zero.shape[-1]), generators)
        numbers = draw(uniform, (len(zero), queries, 11), generators)
        return cls(stripes.to(zero), numbers.to(zero), _reach(problem, zero))

    def of(self, rows: Tensor, query: int) -> _Throw:
        """One query's numbers for these rows."""
        numbers = self.numbers[rows, query]
        blocks = numbers[:, :8].unflatten(1, (2, 4)).transpose(0, 1)
        return _Throw(blocks, (numbers[:, 8:] - 0.5).sign(), self.reach[rows])


def _stripes(part: Problem, numbers: Tensor) -> Tensor:
    """Vertical stripes of random colours, the same in all rows and frames, which spend eps."""
    zero = part.zero()
    signs = (numbers - 0.5).sign().view(len(zero), 3, *[1] * (zero.ndim - 3), -1)
    return _spending(part, torch.where(part.mask, signs.expand_as(zero), 0.0))


def _paint(part: Problem, delta: Tensor, share: float, dice: _Throw) -> Tensor:
    """One block in one colour of full strength."""
    block = _block(part, delta, share, dice.blocks[0], dice.reach)
    colours = dice.colours.view(-1, 3, *[1] * (delta.ndim - 2))
    if type(part.threat) is Linf:
        return torch.where(block, part.threat.eps * colours, delta)
    return torch.where(block, _spending(part, torch.where(block, colours, 0.0)), delta)


def _move(part: Problem, delta: Tensor, share: float, dice: _Throw) -> Tensor:
    """One block takes the budget of another, for more of its own change and of one colour."""
    block, other = (_block(part, delta, share, each, dice.reach) for each in dice.blocks)
    colours = dice.colours.view(-1, 3, *[1] * (delta.ndim - 2))
    own = _unit(torch.where(block, delta, 0.0)) + _unit(torch.where(block, colours, 0.0))
    spent = torch.where(block | other, 0.0, delta).flatten(1).square().sum(dim=1)
    free = (part.threat.eps**2 - spent).clamp_min(0).sqrt()
    moved = torch.where(block, per_row(free, delta) * _unit(own), delta)
    return torch.where(other & ~block, 0.0, moved)


def _unit(delta: Tensor) -> Tensor:
    norms = torch.linalg.vector_norm(delta.flatten(1), dim=1)
    return delta / per_row(norms.clamp_min(torch.finfo(delta.dtype).tiny), delta)


def _spending(part: Problem, pattern: Tensor) -> Tensor:
    """The pattern as strong as eps allows, were there no box."""
    sizes = part.threat.size(pattern).view(len(pattern), -1).amax(dim=1)
    strength = part.threat.eps / sizes.clamp_min(torch.finfo(pattern.dtype).tiny)
    return per_row(strength, pattern) * pattern


def _block(part: Problem, delta: Tensor, share: float, numbers: Tensor, reach: Tensor) -> Tensor:
    """A block somewhere within what may change, bool `[R, 1, T, H, W]` (of images without T).

    It lasts a random number of frames, and is as wide as the share of the pixels then asks for.
    """
    first, counts = reach.unbind(2)  # [R, 3]
    lasting = (numbers[:, :1] * counts[:, :1]).floor() + 1
    side = (share * counts.prod(dim=1, keepdim=True) / lasting).sqrt().round().clamp(min=1)
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


def _reach(problem: Problem, zero: Tensor) -> Tensor:
    """`[R, 3, 2]`: along T, H and W, where what may change begins and how far it reaches."""
    free = problem.mask.expand(len(zero), 1, *zero.shape[2:])
    free = free.reshape(len(zero), -1, *zero.shape[-2:])  # [R, T, H, W]
    found = []
    for axis in (1, 2, 3):
        along = free.any(dim=[each for each in (3, 2, 1) if each != axis]).to(zero.dtype)
        first = along.argmax(dim=1)
        last = along.shape[1] - 1 - along.flip(1).argmax(dim=1)
        found.append(torch.stack([first, last - first + 1], dim=1))
    return torch.stack(found, dim=1).to(zero.dtype)
