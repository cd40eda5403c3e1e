"""Contrastive losses, row by row and in blocks of rows."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vidcsl.io import return_freed_memory

# ----------------------------------------------------------------------
# Masks of pairs, bool `[b, M]`: compared, counted, turned into numbers.
#
# On CPUs, comparisons are NumPy's and numbers come by way of bytes: torch's kernels to and from
# bool do not use vector registers and are two to five times slower.


def equal(rows: Tensor, columns: Tensor) -> Tensor:
    """Where the integers `[b]` and `[M]` are equal."""
    return _compared(np.equal, torch.eq, rows[:, None], columns)


def above(values: Tensor, limit: float) -> Tensor:
    """Where `values` `[b, M]` are greater than the limit."""
    return _compared(np.greater, torch.gt, values, values.new_tensor(limit))


def at_least(values: Tensor, limits: Tensor) -> Tensor:
    """Where `values` `[b, M]` reach the limit of their row, `[b]`."""
    return _compared(np.greater_equal, torch.ge, values, limits[:, None])


def count(mask: Tensor) -> Tensor:
    """How many of each row are true, int64 `[b]`."""
    return mask.view(torch.int8).sum(dim=1, dtype=torch.int32).long()


def as_numbers(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """1 where true, else 0."""
    return mask.view(torch.int8).to(dtype)


def _compared(
    on_cpu: Callable[..., Any], elsewhere: Callable[..., Tensor], one: Tensor, other: Tensor
) -> Tensor:
    one, other = one.detach(), other.detach()
    if one.device.type != "cpu":
        return elsewhere(one, other)
    return torch.from_numpy(on_cpu(one.numpy(), other.numpy()))


# ----------------------------------------------------------------------
# Contrastive losses as pure functions of a block of rows: anchors against all their candidates.
#
# SimCLR, SupCon, losses over a queue, elimination and attraction of false negatives differ only in
# which candidates are positives of an anchor and which are ignored: `Pairs`. Each loss here is
# local to its rows, so that `blockwise` can walk any number of anchors without holding all pairs
# at once.

RowLoss = Callable[[Tensor, "Pairs"], tuple[Tensor, Tensor]]
"""`(similarities [b, M], pairs) -> (loss [b], defined [b])`: an entry of LOSSES, options bound."""

RINCE_LIMIT = 80  # largest order / temperature: e^80 times any number of rows fits float32


@dataclass(frozen=True)
class Pairs:
    """What each of M candidates is to each of b anchors: a positive, ignored, or else a negative.

    Args:
        positives: bool `[b, M]`.
        ignored: bool `[b, M]`, left out of the loss: the anchor itself, removed false negatives.
            No positive is ignored.
        weights: float `[b, M]` >= 0, how much a pair counts in its role; a weight of 0 is the same
            as ignored. None: all count alike.
    """

    positives: Tensor
    ignored: Tensor
    weights: Tensor | None = None

    def negatives(self) -> Tensor:
        """Bool `[b, M]`."""
        return ~(self.positives | self.ignored)


def at_least_float32(tensor: Tensor) -> Tensor:
    """The tensor in float32, or as it is where it is wider."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def nt_xent(similarities: Tensor, pairs: Pairs, *, temperature: float) -> tuple[Tensor, Tensor]:
    """Cross-entropy of each anchor against its candidates, averaged over its positives.

    For anchor i with positives P(i) and kept candidates A(i) (all that are not ignored):

        L_i = -1/|P(i)| sum_{p in P(i)} log( exp(s_ip / t) / sum_{a in A(i)} exp(s_ia / t) )

    With one positive this is NT-Xent (Chen et al., 2020), and over the keys of a queue InfoNCE
    (van den Oord et al., 2018; He et al., 2020); with the positives of a class it is SupCon
    (Khosla et al., 2020, the form with the sum outside).

    Args:
        similarities: cosines `[b, M]`, float32 or wider.
        pairs: positives and ignored candidates.
        temperature: t > 0.

    Returns:
        Loss `[b]`, 0 where it is undefined, and bool `[b]`: where it is defined, that is, where
        the anchor has at least one positive and at least one negative left.
    """
    row = _Row(similarities, pairs, 1 / temperature)
    return row.where_defined(row.cross_entropy())


def supcon_in(similarities: Tensor, pairs: Pairs, *, temperature: float) -> tuple[Tensor, Tensor]:
    """As `nt_xent`, but with the mean over the positives inside the logarithm.

        L_i = -log( 1/|P(i)| sum_{p in P(i)} exp(s_ip / t) / sum_{a in A(i)} exp(s_ia / t) )

    Khosla et al., 2020, equation 3: the nearest positives count most.
    """
    row = _Row(similarities, pairs, 1 / temperature)
    return row.where_defined(row.log_sum(pairs.ignored) - row.log_mean_positive())


def hard_negative(
    similarities: Tensor, pairs: Pairs, *, temperature: float, prior: float, concentration: float
) -> tuple[Tensor, Tensor]:
    """Debiased loss whose negatives count by how near they are.

        L_i = 1/|P(i)| sum_{p in P(i)} -log( e_ip / (e_ip + G_i) ),  e_ij = exp(s_ij / t)
        G_i = max( (R_i - n_i prior mean_P(e_ip)) / (1 - prior),  n_i exp(-1 / t) )
        R_i = n_i sum_N(e_ij^(1 + concentration)) / sum_N(e_ij^concentration)

    with n_i negatives N(i). Robinson et al., "Contrastive Learning with Hard Negative Samples",
    ICLR 2021.

    Args:
        similarities, pairs, temperature: as for `nt_xent`.
        prior: share of the negatives that are of the anchor's class, in [0, 1).
        concentration: how much near negatives are preferred; 0: the debiased loss.
    """
    row, others = _Row(similarities, pairs, 1 / temperature), ~pairs.negatives()
    # All in logarithms: at a temperature of 0.01 the exponentials leave float32.
    number = _or_one(row.negative_mass).log()
    drawn = row.log_sum(others, power=1 + concentration)
    drawn = drawn + (number - row.log_sum(others, power=concentration))
    same_class = number + row.log_mean_positive() + (math.log(prior) if prior else -math.inf)
    log_negative = _log_difference(drawn, same_class) - math.log1p(-prior)
    log_negative = torch.maximum(log_negative, number - row.scale)
    terms = -F.logsigmoid(similarities * row.scale - log_negative[:, None])
    return row.where_defined(row.mean_positive(terms))


def debiased(
    similarities: Tensor, pairs: Pairs, *, temperature: float, prior: float
) -> tuple[Tensor, Tensor]:
    """Takes out of the negatives what `prior` says are positives; see `hard_negative`.

    Chuang et al., "Debiased Contrastive Learning", NeurIPS 2020.
    """
    return hard_negative(
        similarities, pairs, temperature=temperature, prior=prior, concentration=0.0
    )


def rince(
    similarities: Tensor, pairs: Pairs, *, temperature: float, order: float, density: float
) -> tuple[Tensor, Tensor]:
    """Robust InfoNCE: between InfoNCE (`order` near 0) and a loss that bears wrong positives (1).

        L_i = -mean_P(e_ip^order) / order + (density sum_A(e_ia))^order / order

    with e_ij = exp(s_ij / t), positives P(i) and kept candidates A(i). Chuang et al., "Robust
    Contrastive Learning against Noisy Views", CVPR 2022.

    Args:
        similarities, pairs, temperature: as for `nt_xent`; order / temperature must be at most
            RINCE_LIMIT.
        order: q in (0, 1].
        density: lambda > 0.
    """
    row = _Row(similarities, pairs, 1 / temperature)
    attraction = row.log_mean_positive(power=order)
    repulsion = order * (row.log_sum(pairs.ignored) + math.log(density))
    return row.where_defined((repulsion.exp() - attraction.exp()) / order)


LOSSES: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
    "nt_xent": nt_xent,
    "supcon_in": supcon_in,
    "debiased": debiased,
    "hard_negative": hard_negative,
    "rince": rince,
}


class _Row:
    """What the losses are made of: means and log-sums over the positives or others of each row."""

    def __init__(self, similarities: Tensor, pairs: Pairs, scale: float) -> None:
        self.similarities, self.pairs, self.scale = similarities, pairs, scale
        self.positive = as_numbers(pairs.positives, similarities.dtype)  # [b, M]
        if pairs.weights is None:
            self.negative_mass = count(pairs.negatives()).to(similarities.dtype)  # [b]
        else:
            self.positive = self.positive * pairs.weights
            self.negative_mass = torch.where(pairs.negatives(), pairs.weights, 0.0).sum(dim=1)
        self.positive_mass = self.positive.sum(dim=1)  # [b]

    def where_defined(self, loss: Tensor) -> tuple[Tensor, Tensor]:
        """Loss, 0 where a row has no positive or no negative; and where it has both."""
        defined = (self.positive_mass > 0) & (self.negative_mass > 0)
        return torch.where(defined, loss, 0.0), defined

    def mean_positive(self, values: Tensor) -> Tensor:
        """Weighted mean of `values` `[b, M]` over the positives, `[b]`; 0 where there is none."""
        return (values * self.positive).sum(dim=1) / _or_one(self.positive_mass)

    def cross_entropy(self) -> Tensor:
        """log of the sum over all kept of exp(s / t), less the mean of s / t over the positives."""
        share = 1 / _or_one(self.positive_mass)
        return self._log_sum(self.pairs.ignored, self.scale, self.positive, share)

    def log_sum(self, left_out: Tensor, *, power: float = 1.0) -> Tensor:
        """log of the sum of exp(s / t)^power over all but the `left_out` (bool `[b, M]`), `[b]`."""
        return self._log_sum(left_out, power * self.scale)

    def log_mean_positive(self, *, power: float = 1.0) -> Tensor:
        """log of the mean of exp(s / t)^power over the positives, `[b]`."""
        total = self.log_sum(~self.pairs.positives, power=power)
        return total - _or_one(self.positive_mass).log()

    def _log_sum(self, left_out: Tensor, scale: float, *target: Tensor) -> Tensor:
        weights = self.pairs.weights
        total: Tensor = _LogSum.apply(self.similarities, left_out, weights, scale, *target)
        return total


class _LogSum(torch.autograd.Function):
    """log sum_j w_j exp(scale s_j) of each row but the left out, less share sum_j p_j scale s_j.

    The gradient is made along with it, softmax less share p: one exponential a pair serves both. A
    row with all left out gives a huge negative number and a finite gradient, so that losses can
    leave such rows out without a NaN.
    """

    @staticmethod
    def forward(
        ctx: Any,
        similarities: Tensor,
        left_out: Tensor,
        weights: Tensor | None,
        scale: float,
        positive: Tensor | None = None,
        share: Tensor | None = None,
    ) -> Tensor:
        logits = similarities * scale
        if weights is not None:
            logits += weights.clamp(min=torch.finfo(weights.dtype).tiny).log()
            left_out = left_out | (weights <= 0)
        logits.add_(as_numbers(left_out, logits.dtype), alpha=_lowest(logits))
        peak = logits.amax(dim=1)
        gradient = torch.softmax(logits, dim=1, out=logits)
        result = peak - gradient.amax(dim=1).log()
        if positive is not None and share is not None:
            result -= (similarities * positive).sum(dim=1) * (share * scale)
            gradient.addcmul_(positive, share[:, None], value=-1)
        ctx.save_for_backward(gradient)
        ctx.scale = scale
        return result

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        to_similarities = gradient * (gradients[0] * ctx.scale)[:, None]
        return to_similarities, None, None, None, None, None


def _lowest(tensor: Tensor) -> float:
    """A number below all logits, with room to add a few of it: stands for minus infinity."""
    return torch.finfo(tensor.dtype).min / 4


def _or_one(mass: Tensor) -> Tensor:
    """1 in place of 0, for rows that are left out anyway."""
    return torch.where(mass > 0, mass, 1.0)


def _log_difference(more: Tensor, less: Tensor) -> Tensor:
    """log(exp(more) - exp(less)); the lowest number where that is not positive."""
    gap = less - more
    positive = gap < 0
    # The gradient of the other branch must be finite too, so it never sees a gap of 0 or more.
    difference = more + torch.log(-torch.expm1(torch.where(positive, gap, -1.0)))
    return torch.where(positive, difference, _lowest(more))


def alignment(embeddings: Tensor, others: Tensor) -> Tensor:
    """Mean squared distance of positive pairs, both `[N, P]` of unit length.

    Wang & Isola, "Understanding Contrastive Representation Learning through Alignment and
    Uniformity on the Hypersphere", ICML 2020 (alpha = 2).
    """
    return (embeddings - others).square().sum(dim=1).mean()


def uniformity(embeddings: Tensor) -> Tensor:
    """Log of the mean Gaussian potential over all pairs of `[N, P]` unit vectors, N >= 2 (t = 2).

    0 when all coincide, about -4 when spread evenly over a sphere of many dimensions.
    Wang & Isola, ICML 2020.
    """
    return torch.pdist(at_least_float32(embeddings)).square().mul(-2).exp().mean().log()


# ----------------------------------------------------------------------
# A contrastive loss over any number of anchors in memory linear in their number.
#
# The N x M matrix of all pairs is never held: blocks of anchors are walked one after the other, and
# for each the similarities, the pairs, the row losses and the gradients are made and dropped. The
# loss and its gradient are exact, whatever the size of the blocks; one block is the dense loss.

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
