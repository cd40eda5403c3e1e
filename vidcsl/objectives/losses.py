"""Contrastive losses as pure functions of logits and boolean masks.

SimCLR, SupCon, losses over a queue, elimination and attraction of false negatives differ only in
which candidates are positives of an anchor and which are ignored.
"""

import torch
from torch import Tensor


def at_least_float32(tensor: Tensor) -> Tensor:
    """The tensor in float32, or as it is where it is wider."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def similarity_matrix(anchors: Tensor, candidates: Tensor) -> Tensor:
    """Cosine similarities `[N, M]` of unit embeddings `[N, P]` and `[M, P]`.

    At least float32: at a temperature of 0.01, half precision leaves no digits of a logit.
    """
    with torch.autocast(anchors.device.type, enabled=False):
        return at_least_float32(anchors) @ at_least_float32(candidates).T


def contrastive_loss(
    similarities: Tensor, *, positives: Tensor, ignored: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of each anchor against its candidates, averaged over its positives.

    For anchor i with positives P(i) and kept candidates A(i) (all that are not ignored):

        L_i = -1/|P(i)| sum_{p in P(i)} log( exp(s_ip / t) / sum_{a in A(i)} exp(s_ia / t) )

    With one positive, and the anchor itself ignored, this is NT-Xent (Chen et al., 2020); with the
    positives of a class it is SupCon (Khosla et al., 2020, the form with the sum outside).

    Args:
        similarities: cosines `[N, M]`, float32 or wider.
        positives: bool `[N, M]`.
        ignored: bool `[N, M]`, candidates left out of the denominator: the anchor itself, removed
            false negatives. A positive must not be ignored.
        temperature: t > 0.

    Returns:
        Loss `[N]`, 0 where it is undefined, and bool `[N]`: where it is defined, that is, where
        the anchor has at least one positive and at least one negative left.
    """
    kept = ~ignored
    count = positives.sum(dim=1)
    defined = (count > 0) & ((kept & ~positives).sum(dim=1) > 0)
    # Undefined rows are computed over all candidates and then zeroed: a row of -inf has NaN
    # gradients even where its loss is not used.
    kept = kept | ~defined[:, None]
    logits = similarities / temperature
    log_partition = logits.masked_fill(~kept, -torch.inf).logsumexp(dim=1)
    mean_positive = (logits * positives).sum(dim=1) / count.clamp(min=1)
    return torch.where(defined, log_partition - mean_positive, 0.0), defined


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
