"""Square (Andriushchenko et al. 2020): random search with squares, which sees outputs alone."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vidcsl.errors import UserError
from vidcsl.robustness.attacks.ascent import per_row
from vidcsl.robustness.attacks.problem import Problem, Worst
from vidcsl.robustness.threats import L2
from vidcsl.robustness.threats.ball import draw, uniform

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
        generators = problem.generators("square")
        for query in range(self.queries):
            rows = worst.standing() if self.stop_when_fooled else problem.rows
            if len(rows) == 0:
                break
            part, mine = problem.take(rows), [generators[row] for row in rows.tolist()]
            if query == 0:  # whatever the stripes do, they are where the search begins
                delta = part.project(_stripes(part, mine))
                worst.put(rows, delta, part.judge(delta))
            else:
                delta = self._proposal(part, worst.delta[rows], query, mine)
                worst.offer(rows, delta, part.judge(delta))
        worst.offer(problem.rows, clean, unchanged)
        return worst.delta

    def _proposal(
        self, part: Problem, delta: Tensor, query: int, generators: Sequence[torch.Generator]
    ) -> Tensor:
        share = share_at(query, self.queries, self.share)
        propose = _move if type(part.threat) is L2 else _paint
        return part.project(propose(part, delta, share, generators))


def _stripes(part: Problem, generators: Sequence[torch.Generator]) -> Tensor:
    """Vertical stripes of random colours, the same in all rows and frames, which spend eps."""
    zero = part.zero()
    shape = (*zero.shape[:2], *[1] * (zero.ndim - 3), zero.shape[-1])
    signs = draw(uniform, shape, generators).to(zero).sub(0.5).sign()
    return _spending(part, torch.where(part.mask, signs.expand_as(zero), 0.0))


def _paint(
    part: Problem, delta: Tensor, share: float, generators: Sequence[torch.Generator]
) -> Tensor:
    """One block in one colour of full strength."""
    block = _block(part, delta, share, generators)
    colours = draw(uniform, (len(delta), 3), generators).to(delta).sub(0.5).sign()
    colours = colours.view(-1, 3, *[1] * (delta.ndim - 2))
    return torch.where(block, _spending(part, torch.where(block, colours, 0.0)), delta)


def _move(
    part: Problem, delta: Tensor, share: float, generators: Sequence[torch.Generator]
) -> Tensor:
    """One block takes the budget of another, for more of its own change and of one colour."""
    block, other = (_block(part, delta, share, generators) for _ in range(2))
    colours = draw(uniform, (len(delta), 3), generators).to(delta).sub(0.5).sign()
    colours = colours.view(-1, 3, *[1] * (delta.ndim - 2))
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


def _block(
    part: Problem, delta: Tensor, share: float, generators: Sequence[torch.Generator]
) -> Tensor:
    """A block somewhere within what may change, bool `[R, 1, T, H, W]` (of images without T).

    It lasts a random number of frames, and is as wide as the share of the pixels then asks for.
    """
    shape = delta.shape if delta.ndim == 5 else (*delta.shape[:2], 1, *delta.shape[2:])
    free = part.mask.expand(-1, 1, *delta.shape[2:]).reshape(len(delta), *shape[2:])
    numbers = draw(uniform, (len(delta), 4), generators).to(delta)
    bounds = [_bounds(free, axis) for axis in (1, 2, 3)]  # first and number, of T, H and W
    counts = torch.stack([count for _, count in bounds], dim=1)
    lasting = (numbers[:, 0] * counts[:, 0]).floor() + 1
    side = (share * counts.prod(dim=1) / lasting).sqrt().round().clamp(min=1)
    inside = torch.ones_like(free)
    for axis, (first, count) in enumerate(bounds):
        length = torch.minimum(lasting if axis == 0 else side, count)
        begin = first + (numbers[:, axis + 1] * (count - length + 1)).floor()
        position = torch.arange(free.shape[axis + 1], device=delta.device)
        along = (position >= begin[:, None]) & (position < (begin + length)[:, None])
        inside &= along.unflatten(1, [along.shape[1] if axis == each else 1 for each in range(3)])
    return (inside & free).view(len(delta), 1, *delta.shape[2:])


def _bounds(free: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Where the free pixels of each row begin along an axis, and how far they reach."""
    along = free.any(dim=[each for each in (3, 2, 1) if each != axis]).to(torch.float32)
    first = along.argmax(dim=1)
    last = along.shape[1] - 1 - along.flip(1).argmax(dim=1)
    return first, last - first + 1
