"""A contrastive loss over any number of anchors in memory linear in their number.

The N x M matrix of all pairs is never held: blocks of anchors are walked one after the other, and
for each the similarities, the pairs, the row losses and the gradients are made and dropped. The
loss and its gradient are exact, whatever the size of the blocks; one block is the dense loss.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vidcsl.memory import return_freed_memory
from vidcsl.objectives.losses import Pairs, RowLoss, at_least_float32

PairsOf = Callable[[Tensor, slice], Pairs]
"""`(similarities [b, M], rows) -> Pairs` of the b anchors `rows` against all candidates."""

# On a CPU, a block of this many pairs (4 MiB in float32) and what the loss makes of it stay in the
# caches, fewer rows cost more calls than work; a GPU wants more work at a time.
BLOCK_PAIRS = {"cpu": 2**20, "cuda": 2**26}
BLOCK_ROWS = (32, 256)  # at least and, on a CPU, at most
RETURN_EVERY = 32  # blocks after which freed memory is given back: seldom enough to cost nothing


def blockwise_loss(
    anchors: Tensor,
    candidates: Tensor,
    *,
    loss: RowLoss,
    pairs: PairsOf,
    views: int = 1,
    block: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Sum of the row losses of all anchors, with gradients to anchors and candidates.

    The gradient is computed in the same walk as the loss, so that nothing of a block outlives it
    but its share of two matrices, `[N, P]` and `[M, P]`.

    Args:
        anchors: unit embeddings `[N, P]`, of any float type; pairs are computed in float32 (or
            wider, where the embeddings are) whatever the autocast.
        candidates: unit embeddings `[M, P]`: all views of all processes, keys, a queue.
        loss: see `losses.LOSSES`.
        pairs: called once for each block, in the order of the rows, with cosines without gradient
            that it must not change; what it says of a row must not depend on the block.
        views: consecutive anchors that belong together: they are in one block.
        block: rows of a block, rounded up to whole groups of views; by default as fits the cache.

    Returns:
        The sum, a scalar, and bool `[N]`: which rows are defined. It can be differentiated once.
    """
    rows = block or _block_rows(len(candidates), anchors.device.type)
    rows = -(-rows // views) * views
    alike = candidates is anchors
    with torch.autocast(anchors.device.type, enabled=False):
        anchors = at_least_float32(anchors)
        candidates = anchors if alike else at_least_float32(candidates)
        total, defined = _Walk.apply(anchors, candidates, loss, pairs, rows)
    return total, defined


def _block_rows(columns: int, device: str) -> int:
    rows = BLOCK_PAIRS[device] // max(1, columns)
    least, most = BLOCK_ROWS
    return max(least, min(rows, most) if device == "cpu" else rows)


class _Walk(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, anchors: Tensor, candidates: Tensor, loss: RowLoss, pairs: PairsOf, rows: int
    ) -> tuple[Tensor, Tensor]:
        alike, wanted = candidates is anchors, ctx.needs_input_grad[:2]
        to_anchors = torch.zeros_like(anchors) if wanted[0] else None
        to_candidates = torch.zeros_like(candidates) if wanted[1] and not alike else None
        total = anchors.new_zeros((), dtype=torch.float64)
        defined = torch.empty(len(anchors), dtype=torch.bool, device=anchors.device)
        for start in range(0, len(anchors), rows):
            if start % (RETURN_EVERY * rows) == 0 and start:
                return_freed_memory(anchors.device)
            here = slice(start, min(start + rows, len(anchors)))
            similarities = anchors[here] @ candidates.T
            of_block = pairs(similarities, here)
            with torch.set_grad_enabled(any(wanted)):
                similarities.requires_grad_(any(wanted))
                losses, defined[here] = loss(similarities, of_block)
                summed = losses.sum()
            total += summed.detach()
            if any(wanted):
                (gradient,) = torch.autograd.grad(summed, similarities)
            if to_anchors is not None:
                to_anchors[here].addmm_(gradient, candidates)
            # Where the candidates are the anchors, one matrix holds what both roles give.
            to_others = to_anchors if alike else to_candidates
            if to_others is not None:
                to_others.addmm_(gradient.T, anchors[here])
        ctx.save_for_backward(to_anchors, to_candidates)
        ctx.mark_non_differentiable(defined)
        return total.to(anchors.dtype), defined

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        scaled = (g if g is None else g * gradients[0] for g in ctx.saved_tensors)
        return (*scaled, None, None, None)
