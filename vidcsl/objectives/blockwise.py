"""A contrastive loss over any number of anchors in memory linear in their number.

The N x M matrix of all pairs is never held: blocks of anchors are walked one after the other, and
for each the similarities, the pairs, the row losses and the gradients are made and dropped. The
loss and its gradient are exact, whatever the size of the blocks; one block is the dense loss.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vidcsl.objectives.losses import Pairs, RowLoss, at_least_float32

PairsOf = Callable[[Tensor, slice], Pairs]
"""`(similarities [b, M], rows) -> Pairs` of the b anchors `rows` against all candidates."""

BLOCK_PAIRS = 2**20  # pairs in a block: 4 MiB in float32, so that a few such matrices stay in cache
BLOCK_ROWS = 64  # at least: below, reading the candidates costs more than multiplying them


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
    rows = block or max(BLOCK_ROWS, BLOCK_PAIRS // max(1, len(candidates)))
    rows = -(-rows // views) * views
    with torch.autocast(anchors.device.type, enabled=False):
        total, defined = _Walk.apply(
            at_least_float32(anchors), at_least_float32(candidates), loss, pairs, rows
        )
    return total, defined


class _Walk(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, anchors: Tensor, candidates: Tensor, loss: RowLoss, pairs: PairsOf, rows: int
    ) -> tuple[Tensor, Tensor]:
        wanted = any(ctx.needs_input_grad)
        to_anchors, to_candidates = torch.empty_like(anchors), torch.zeros_like(candidates)
        total = anchors.new_zeros((), dtype=torch.float64)
        defined = torch.empty(len(anchors), dtype=torch.bool, device=anchors.device)
        for start in range(0, len(anchors), rows):
            here = slice(start, min(start + rows, len(anchors)))
            similarities = anchors[here] @ candidates.T
            of_block = pairs(similarities, here)
            with torch.set_grad_enabled(wanted):
                losses, defined[here] = loss(similarities.requires_grad_(wanted), of_block)
                summed = losses.sum()
            total += summed.detach()
            if wanted:
                (gradient,) = torch.autograd.grad(summed, similarities)
                torch.mm(gradient, candidates, out=to_anchors[here])
                to_candidates.addmm_(gradient.T, anchors[here])
        ctx.save_for_backward(to_anchors, to_candidates)
        ctx.mark_non_differentiable(defined)
        return total.to(anchors.dtype), defined

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        both = zip(ctx.saved_tensors, ctx.needs_input_grad[:2], strict=True)
        return (*(g * gradients[0] if needed else None for g, needed in both), None, None, None)
