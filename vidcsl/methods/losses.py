"""Contrastive losses: pure functions of anchors against candidates, and the walk over blocks.

SimCLR, SupCon, losses over a queue, elimination and attraction of false negatives differ only in
which candidates are positives of an anchor, which are ignored and how much each counts: `Pairs`.
Each loss is local to its rows, so that `blockwise_loss` can take any number of anchors without
holding all pairs at once.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vidcsl.io import return_freed_memory
from vidcsl.registry import Option, Registry

RowLoss = Callable[[Tensor, "Pairs"], tuple[Tensor, Tensor]]
"""`(similarities [b, M], pairs) -> (loss [b], defined [b])`: an entry of LOSSES, options bound."""

RINCE_LIMIT = 80  # largest order / temperature: e^80 times any number of rows fits float32

LOSSES: Registry[Callable[..., tuple[Tensor, Tensor]]] = Registry(
    "LOSS.NAME",
    default="nt_xent",
    meaning="contrastive loss",
    shared={
        "PRIOR": Option(
            0.1,
            "debiased, hard_negative: fraction of the negatives that are of the anchor's class",
            minimum=0,
            maximum=0.99,
        )
    },
)


@dataclass(frozen=True)
class Pairs:
    """What each of M candidates is to each of b anchors: a positive, ignored, or else a negative.

    Args:
        positives: bool `[b, M]`.
        ignored: bool `[b, M]`, left out of the loss: the anchor itself, eliminated false
            negatives. No positive is ignored.
        weights: float `[b, M]` >= 0, how much a pair counts in its role; a weight of 0 is the same
            as ignored. None: all count alike.
    """

    positives: Tensor
    ignored: Tensor
    weights: Tensor | None = None

    def negatives(self) -> Tensor:
        """Bool `[b, M]`."""
        return ~(self.positives | self.ignored)


@LOSSES.register("nt_xent", "NT-Xent; with the positives of a class SupCon, over a queue InfoNCE")
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
    # Log-sum and mean over the positives in one function: half the passes over the pairs.
    target = 1 / _or_one(row.positive_mass)
    loss: Tensor = _LogSum.apply(
        similarities, pairs.ignored, pairs.weights, row.scale, row.positive, target
    )
    return row.where_defined(loss)


@LOSSES.register("supcon_in", "SupCon with the sum inside the logarithm")
def supcon_in(similarities: Tensor, pairs: Pairs, *, temperature: float) -> tuple[Tensor, Tensor]:
    """As `nt_xent`, but with the mean over the positives inside the logarithm.

        L_i = -log( 1/|P(i)| sum_{p in P(i)} exp(s_ip / t) / sum_{a in A(i)} exp(s_ia / t) )

    Khosla et al., 2020, equation 3: the nearest positives count most.
    """
    row = _Row(similarities, pairs, 1 / temperature)
    return row.where_defined(row.log_sum(pairs.ignored) - row.log_mean_positive())


@LOSSES.register("debiased", "corrected for the fraction of false negatives (Chuang et al., 2020)")
def debiased(
    similarities: Tensor, pairs: Pairs, *, temperature: float, prior: float
) -> tuple[Tensor, Tensor]:
    """Subtracts the positives that `prior` expects among the negatives; see `hard_negative`.

    Chuang et al., "Debiased Contrastive Learning", NeurIPS 2020.
    """
    return hard_negative(
        similarities, pairs, temperature=temperature, prior=prior, concentration=0.0
    )


@LOSSES.register(
    "hard_negative",
    "debiased, near negatives count more (Robinson et al., 2021)",
    CONCENTRATION=Option(1.0, "hard_negative: how much near negatives count more", minimum=0),
)
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
        prior: fraction of the negatives that are of the anchor's class, in [0, 1).
        concentration: how much near negatives are preferred; 0: the debiased loss.
    """
    row, others = _Row(similarities, pairs, 1 / temperature), ~pairs.negatives()
    # All in logarithms: at a temperature of 0.01 the exponentials leave float32.
    number = _or_one(row.negative_mass).log()
    drawn = row.log_sum(others, power=1 + concentration)
    drawn = drawn + (number - row.log_sum(others, power=concentration))
    same_class = number + row.log_mean_positive() + (math.log(prior) if prior else -math.inf)
    # log(e^drawn - e^same_class), and the lowest number where the estimate is not positive. The
    # gradient of the branch that is not taken must be finite too, so it sees a gap of -1 there.
    gap = same_class - drawn
    positive = gap < 0
    difference = drawn + torch.log(-torch.expm1(torch.where(positive, gap, -1.0)))
    difference = torch.where(positive, difference, _lowest(drawn))
    # The estimate may fall below the least that n negatives can sum to, all at a cosine of -1:
    # the floor is from the paper.
    log_negative = torch.maximum(difference - math.log1p(-prior), number - row.scale)
    terms = -F.logsigmoid(similarities * row.scale - log_negative[:, None])
    return row.where_defined(row.mean_positive(terms))


@LOSSES.register(
    "rince",
    "robust to wrong positives (Chuang et al., 2022)",
    ORDER=Option(
        0.1,
        "rince: near 0 it equals InfoNCE, at 1 it is most robust to wrong positives",
        minimum=1e-3,
        maximum=1,
    ),
    DENSITY=Option(0.01, "rince: weight of the negatives (lambda)", minimum=1e-6),
)
def rince(
    similarities: Tensor, pairs: Pairs, *, temperature: float, order: float, density: float
) -> tuple[Tensor, Tensor]:
    """Robust InfoNCE: from InfoNCE (`order` near 0) to a loss that tolerates wrong positives (1).

        L_i = -mean_P(e_ip^order) / order + (density sum_A(e_ia))^order / order

    with e_ij = exp(s_ij / t), positives P(i) and kept candidates A(i). Chuang et al., "Robust
    Contrastive Learning against Noisy Views", CVPR 2022.

    Args:
        similarities, pairs, temperature: as for `nt_xent`; order / temperature must be at most
            RINCE_LIMIT.
        order: q in (0, 1].
        density: lambda > 0.
    """
    # In logarithms as long as possible; RINCE_LIMIT keeps the last exponentials in float32.
    row = _Row(similarities, pairs, 1 / temperature)
    attraction = row.log_mean_positive(power=order)
    repulsion = order * (row.log_sum(pairs.ignored) + math.log(density))
    return row.where_defined((repulsion.exp() - attraction.exp()) / order)


def blockwise_loss(
    anchors: Tensor,
    candidates: Tensor,
    *,
    loss: RowLoss,
    pairs: "PairsOf",
    views: int = 1,
    block: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Sum of the row losses of all anchors, with gradients to anchors and candidates.

    The N x M matrix of all pairs is never held, so memory is linear in N. Blocks of anchors are
    taken one after the other; for each the similarities, the pairs, the row losses and the gradient
    are computed, and nothing of a block outlives it but what it adds to two matrices, `[N, P]` and
    `[M, P]`. Loss and gradient are exact, whatever the size of the blocks.

    Args:
        anchors: unit embeddings `[N, P]`, of any float type; pairs are computed in float32 (or
            wider, where the embeddings are) whatever the autocast.
        candidates: unit embeddings `[M, P]`: all views of all processes, keys, a queue.
        loss: an entry of LOSSES, its options bound.
        pairs: called once for each block, in the order of the rows, with cosines without gradient
            that it must not change; the pairs of a row must not depend on the block.
        views: consecutive anchors that belong together: they are in one block.
        block: rows of a block, rounded up to whole groups of views; by default as fits the cache.

    Returns:
        The sum, a scalar, and bool `[N]`: which rows are defined. It can be differentiated once.
    """
    device = anchors.device.type
    if block is None:
        least, most = BLOCK_ROWS
        block = max(least, BLOCK_PAIRS[device] // max(1, len(candidates)))
        block = min(block, most) if device == "cpu" else block
    rows = -(-block // views) * views
    alike = candidates is anchors
    with torch.autocast(device, enabled=False):
        anchors = at_least_float32(anchors)
        candidates = anchors if alike else at_least_float32(candidates)
        total, defined = _BlockwiseLoss.apply(anchors, candidates, loss, pairs, rows)
    return total, defined


PairsOf = Callable[[Tensor, slice], Pairs]
"""`(similarities [b, M], rows) -> Pairs` of the b anchors `rows` against all candidates."""

# On a CPU, a block of this many pairs (4 MiB in float32) and what the loss makes of it stay in the
# caches, fewer rows cost more calls than work; a GPU wants more work at a time.
BLOCK_PAIRS = {"cpu": 2**20, "cuda": 2**26}
BLOCK_ROWS = (32, 256)  # at least and, on a CPU, at most
RETURN_EVERY = 32  # blocks after which freed memory is given back: seldom enough to cost nothing


class _BlockwiseLoss(torch.autograd.Function):
    """Loss and gradient in one pass: a second one would compute all pairs again."""

    @staticmethod
    def forward(
        ctx: Any, anchors: Tensor, candidates: Tensor, loss: RowLoss, pairs: PairsOf, rows: int
    ) -> tuple[Tensor, Tensor]:
        alike, wanted = candidates is anchors, ctx.needs_input_grad[:2]
        to_anchors = torch.zeros_like(anchors) if wanted[0] else None
        to_candidates = torch.zeros_like(candidates) if wanted[1] and not alike else None
        # Summed in float64: a million rows in float32 would lose the last digits.
        total = anchors.new_zeros((), dtype=torch.float64)
        defined = torch.empty(len(anchors), dtype=torch.bool, device=anchors.device)
        for start in range(0, len(anchors), rows):
            if start % (RETURN_EVERY * rows) == 0 and start:
                return_freed_memory(anchors.device)
            here = slice(start, min(start + rows, len(anchors)))
            similarities = anchors[here] @ candidates.T
            of_block = pairs(similarities, here)
            # The similarities are a leaf: the graph of a block ends here and is freed with it.
            with torch.set_grad_enabled(any(wanted)):
                similarities.requires_grad_(any(wanted))
                losses, defined[here] = loss(similarities, of_block)
                summed = losses.sum()
            total += summed.detach()
            if any(wanted):
                (gradient,) = torch.autograd.grad(summed, similarities)
            # By hand into one matrix for all blocks; autograd would hold one for each.
            if to_anchors is not None:
                to_anchors[here].addmm_(gradient, candidates)
            # Where the candidates are the anchors, one matrix collects both roles.
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


class _Row:
    """What the losses are made of: means and log-sums over the positives or others of each row."""

    def __init__(self, similarities: Tensor, pairs: Pairs, scale: float) -> None:
        self.similarities, self.pairs, self.scale = similarities, pairs, scale
        self.positive = pairs.positives.to(similarities.dtype)  # [b, M]
        if pairs.weights is None:
            self.negative_mass = pairs.negatives().sum(dim=1).to(similarities.dtype)  # [b]
        else:
            self.positive = self.positive * pairs.weights
            self.negative_mass = torch.where(pairs.negatives(), pairs.weights, 0.0).sum(dim=1)
        self.positive_mass = self.positive.sum(dim=1)  # [b]

    def where_defined(self, loss: Tensor) -> tuple[Tensor, Tensor]:
        """Loss, 0 where a row has no positive or no negative; and where it has both."""
        # Without negatives there is nothing to tell apart: the loss would be log 1, or 0 / 0.
        defined = (self.positive_mass > 0) & (self.negative_mass > 0)
        return torch.where(defined, loss, 0.0), defined

    def mean_positive(self, values: Tensor) -> Tensor:
        """Weighted mean of `values` `[b, M]` over the positives, `[b]`; 0 in a row without any."""
        return (values * self.positive).sum(dim=1) / _or_one(self.positive_mass)

    def log_sum(self, left_out: Tensor, *, power: float = 1.0) -> Tensor:
        """log of the sum of exp(s / t)^power over all but the `left_out` (bool `[b, M]`), `[b]`."""
        scale = power * self.scale
        total: Tensor = _LogSum.apply(self.similarities, left_out, self.pairs.weights, scale)
        return total

    def log_mean_positive(self, *, power: float = 1.0) -> Tensor:
        """log of the mean of exp(s / t)^power over the positives, `[b]`."""
        total = self.log_sum(~self.pairs.positives, power=power)
        return total - _or_one(self.positive_mass).log()


class _LogSum(torch.autograd.Function):
    """log sum_j w_j exp(scale s_j) of each row but the left out, less target sum_j p_j scale s_j.

    The gradient, softmax less target p, is computed along with the sum: one exponential a pair
    serves both. A row with all left out gives a huge negative number and a finite gradient, so that
    losses can leave such rows out without a NaN.
    """

    @staticmethod
    def forward(
        ctx: Any,
        similarities: Tensor,
        left_out: Tensor,
        weights: Tensor | None,
        scale: float,
        positive: Tensor | None = None,
        target: Tensor | None = None,
    ) -> Tensor:
        logits = similarities * scale
        if weights is not None:
            # w exp(x) = exp(x + log w). A weight of 0 is left out as well: at a low temperature
            # exp(x) times the smallest float would still count.
            logits += weights.clamp(min=torch.finfo(weights.dtype).tiny).log()
            left_out = left_out | (weights <= 0)
        logits.add_(left_out.to(logits.dtype), alpha=_lowest(logits))
        peak = logits.amax(dim=1)
        gradient = torch.softmax(logits, dim=1, out=logits)
        # The softmax of the peak is 1 / sum_j exp(logit_j - peak): no second exponential.
        result = peak - gradient.amax(dim=1).log()
        if positive is not None and target is not None:
            result -= (similarities * positive).sum(dim=1) * (target * scale)
            gradient.addcmul_(positive, target[:, None], value=-1)
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
    """A number below all logits: minus infinity would turn gradients of empty rows into NaN.

    A few of them can be added without overflow.
    """
    return torch.finfo(tensor.dtype).min / 4


def _or_one(mass: Tensor) -> Tensor:
    """1 in place of 0, for rows that are left out anyway."""
    return torch.where(mass > 0, mass, 1.0)


def at_least_float32(tensor: Tensor) -> Tensor:
    """The tensor in float32, or as it is where it is wider."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
