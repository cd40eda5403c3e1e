"""Nearest points of norm balls within a box, row by row, on `[G, n]` tensors.

All boxes hold zero. Each problem comes down to one number a row, the root of a monotone and
piecewise linear function; Newton's method finds it in a few passes over the data, without a sort.
"""

import torch
from torch import Tensor

PASSES = 64  # far more than Newton's method takes


def water_level(slopes: Tensor, caps: Tensor, target: Tensor) -> Tensor:
    """The smallest t >= 0 with sum_i min(t slopes_i, caps_i) >= target, in each row.

    The sum is concave in t, so that Newton's method from the left never passes the root, and ends
    on it once it knows which terms have reached their caps.

    Args:
        slopes, caps: from 0, `[G, n]`.
        target: from 0, `[G]`.

    Returns:
        `[G, 1]`; infinite where all caps together do not reach the target.
    """
    target = target[:, None]
    level = torch.zeros_like(target)
    for _ in range(PASSES):
        full = slopes * level >= caps
        missing = (target - caps.where(full, caps.new_zeros(())).sum(1, keepdim=True)).clamp_min(0)
        free = slopes.masked_fill(full, 0).sum(1, keepdim=True)
        # Zero over zero: the caps reach the target exactly, or the target is zero.
        found = torch.where(missing > 0, missing / free, level)
        if not (found > level * (1 + 1e-6)).any():
            break
        level = torch.maximum(level, found)
    return level


def shrinkage(sizes: Tensor, caps: Tensor, target: Tensor) -> Tensor:
    """The smallest t >= 0 with sum_i min(max(sizes_i - t, 0), caps_i) <= target, in each row.

    The sum falls with t but is neither convex nor concave: Newton steps within a bracket, which is
    halved wherever a step would leave it.

    Args:
        sizes, caps: from 0, `[G, n]`.
        target: from 0, `[G]`.

    Returns:
        `[G, 1]`.
    """
    target = target[:, None]
    low, high = torch.zeros_like(target), sizes.amax(1, keepdim=True)
    level = low
    for _ in range(PASSES):
        left = (sizes - level).clamp_min(0)
        excess = torch.minimum(left, caps).sum(1, keepdim=True) - target
        low, high = low.where(excess <= 0, level), high.where(excess > 0, level)
        done = excess.abs() <= 1e-6 * target
        if (done | (high - low <= 1e-7 * high)).all():
            break
        falling = ((left > 0) & (left < caps)).sum(1, keepdim=True)
        newton = level + excess / falling
        inside = (newton > low) & (newton < high)
        level = torch.where(done, level, torch.where(inside, newton, (low + high) / 2))
    return torch.where(done, level, high)


def nearest_in_l2(delta: Tensor, low: Tensor, high: Tensor, eps: float) -> Tensor:
    """The point of the Euclidean ball within [low, high] that is nearest to delta, all `[G, n]`."""
    boxed = torch.minimum(torch.maximum(delta, low), high)
    if not (_norm(boxed) > eps).any():
        return boxed
    # Optimality: the point is clip(s delta) for one s in [0, 1]; its squared norm is a sum of
    # min(s^2 delta_i^2, bound_i^2).
    bounds = high.where(delta > 0, low)
    target = delta.new_full((len(delta),), eps**2)
    scale = water_level(delta.square(), bounds.square(), target).sqrt().clamp(max=1)
    found = torch.minimum(torch.maximum(scale * delta, low), high)
    return found * (eps / _norm(found).clamp_min(torch.finfo(delta.dtype).tiny)).clamp(max=1)


def nearest_in_l1(delta: Tensor, low: Tensor, high: Tensor, eps: float) -> Tensor:
    """The point of the L1 ball within [low, high] that is nearest to delta, all `[G, n]`.

    The projection of Croce & Hein 2021, "Mind the Box", without its sort.
    """
    boxed = torch.minimum(torch.maximum(delta, low), high)
    if not (boxed.abs().sum(1) > eps).any():
        return boxed
    # Optimality: the point is clip(sign(delta) max(|delta| - t, 0)) for one t >= 0.
    sizes, bounds = delta.abs(), high.where(delta > 0, -low)
    level = shrinkage(sizes, bounds, delta.new_full((len(delta),), eps))
    found = torch.minimum((sizes - level).clamp_min(0), bounds) * delta.sign()
    total = found.abs().sum(1, keepdim=True).clamp_min(torch.finfo(delta.dtype).tiny)
    return found * (eps / total).clamp(max=1)


def _norm(rows: Tensor) -> Tensor:
    return torch.linalg.vector_norm(rows, dim=1, keepdim=True)
