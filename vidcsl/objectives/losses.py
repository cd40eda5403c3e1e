"""Contrastive losses as pure functions of a block of rows: anchors against all their candidates.

SimCLR, SupCon, losses over a queue, elimination and attraction of false negatives differ only in
which candidates are positives of an anchor and which are ignored: `Pairs`. Each loss here is local
to its rows, so that `blockwise` can walk any number of anchors without holding all pairs at once.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

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

    def kept(self) -> Tensor:
        """Bool `[b, M]`: positives and negatives."""
        return ~self.ignored if self.weights is None else ~self.ignored & (self.weights > 0)

    def negatives(self) -> Tensor:
        """Bool `[b, M]`."""
        return self.kept() & ~self.positives

    def mass(self, chosen: Tensor) -> Tensor:
        """Sum of the weights of the `chosen` (bool `[b, M]`) in each row, `[b]`."""
        if self.weights is None:
            return chosen.sum(dim=1)
        return torch.where(chosen, self.weights, 0.0).sum(dim=1)

    def defined(self) -> Tensor:
        """Bool `[b]`: whether the row has at least one positive and one negative."""
        return (self.mass(self.positives) > 0) & (self.mass(self.negatives()) > 0)


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
    defined = pairs.defined()
    partition = _logsumexp(similarities, pairs.kept(), pairs.weights, 1 / temperature)
    mean_positive = _mean_positive(similarities, pairs) / temperature
    return torch.where(defined, partition - mean_positive, 0.0), defined


def supcon_in(similarities: Tensor, pairs: Pairs, *, temperature: float) -> tuple[Tensor, Tensor]:
    """As `nt_xent`, but with the mean over the positives inside the logarithm.

        L_i = -log( 1/|P(i)| sum_{p in P(i)} exp(s_ip / t) / sum_{a in A(i)} exp(s_ia / t) )

    Khosla et al., 2020, equation 3: the nearest positives count most.
    """
    defined = pairs.defined()
    partition = _logsumexp(similarities, pairs.kept(), pairs.weights, 1 / temperature)
    positive = _log_mean_positive(similarities, pairs, 1 / temperature)
    return torch.where(defined, partition - positive, 0.0), defined


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
    defined = pairs.defined()
    negatives, scale = pairs.negatives(), 1 / temperature
    # All in logarithms: at a temperature of 0.01 the exponentials leave float32.
    count = _or_one(pairs.mass(negatives)).to(similarities.dtype).log()
    drawn = count + _logsumexp(similarities, negatives, pairs.weights, scale * (1 + concentration))
    drawn = drawn - _logsumexp(similarities, negatives, pairs.weights, scale * concentration)
    positive = _log_mean_positive(similarities, pairs, scale)
    log_prior = math.log(prior) if prior else -math.inf
    log_negative = _log_difference(drawn, count + positive + log_prior) - math.log1p(-prior)
    log_negative = torch.maximum(log_negative, count - scale)
    terms = -F.logsigmoid(similarities * scale - log_negative[:, None])
    return torch.where(defined, _mean_positive(terms, pairs), 0.0), defined


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
    defined = pairs.defined()
    scale = 1 / temperature
    attraction = _log_mean_positive(similarities, pairs, scale * order)
    partition = _logsumexp(similarities, pairs.kept(), pairs.weights, scale)
    repulsion = order * (partition + math.log(density))
    loss = (repulsion.exp() - attraction.exp()) / order
    return torch.where(defined, loss, 0.0), defined


LOSSES: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
    "nt_xent": nt_xent,
    "supcon_in": supcon_in,
    "debiased": debiased,
    "hard_negative": hard_negative,
    "rince": rince,
}


class _LogSumExp(torch.autograd.Function):
    """log sum_j w_j exp(scale s_j) over the chosen of each row, and its softmax as gradient.

    One exponential a pair serves both. A row with nothing chosen gives a huge negative number and
    a finite gradient: losses leave such rows out without a NaN.
    """

    @staticmethod
    def forward(
        ctx: Any, similarities: Tensor, chosen: Tensor, weights: Tensor | None, scale: float
    ) -> Tensor:
        logits = similarities * scale
        if weights is not None:
            logits += weights.log()
        logits.masked_fill_(~chosen, torch.finfo(logits.dtype).min / 4)
        share = torch.softmax(logits, dim=1)
        ctx.save_for_backward(share)
        ctx.scale = scale
        return logits.amax(dim=1) - share.amax(dim=1).log()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (share,) = ctx.saved_tensors
        return share * (gradients[0] * ctx.scale)[:, None], None, None, None


def _logsumexp(
    similarities: Tensor, chosen: Tensor, weights: Tensor | None, scale: float
) -> Tensor:
    result: Tensor = _LogSumExp.apply(similarities, chosen, weights, scale)
    return result


def _mean_positive(values: Tensor, pairs: Pairs) -> Tensor:
    """Weighted mean over the positives of each row, `[b]`; 0 where there is none."""
    chosen = torch.where(pairs.positives, values, 0.0)
    if pairs.weights is not None:
        chosen = chosen * pairs.weights
    return chosen.sum(dim=1) / _or_one(pairs.mass(pairs.positives))


def _log_mean_positive(similarities: Tensor, pairs: Pairs, scale: float) -> Tensor:
    """log of the weighted mean of exp(scale s) over the positives of each row, `[b]`."""
    mass = _or_one(pairs.mass(pairs.positives)).to(similarities.dtype)
    return _logsumexp(similarities, pairs.positives, pairs.weights, scale) - mass.log()


def _or_one(mass: Tensor) -> Tensor:
    """1 in place of 0, for rows that are left out anyway."""
    return torch.where(mass > 0, mass, 1)


def _log_difference(more: Tensor, less: Tensor) -> Tensor:
    """log(exp(more) - exp(less)); the smallest number where that is not positive."""
    gap = less - more
    positive = gap < 0
    # The gradient of the other branch must be finite too, so it never sees a gap of 0 or more.
    difference = more + torch.log(-torch.expm1(torch.where(positive, gap, -1.0)))
    return torch.where(positive, difference, torch.finfo(more.dtype).min / 4)


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
