"""BatchNorm over the joined batch of all processes, on any device.

torch's own SyncBatchNorm works on GPUs only. With this one, CPU processes compute what a single
process would, and the tests can compare the two.
"""

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import convert_sync_batchnorm  # type: ignore[attr-defined]
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from vidcsl.distributed import DistributedContext


def synchronise_batchnorm(module: nn.Module, distributed: DistributedContext) -> nn.Module:
    """`module` with every BatchNorm normalising over all processes; unchanged for one process."""
    if distributed.size == 1:
        return module
    if distributed.device.type == "cuda":
        # timm's conversion: torch's drops the activations that timm's norms contain.
        synced: nn.Module = convert_sync_batchnorm(module)
        return synced
    for name, child in module.named_children():
        if isinstance(child, _BatchNorm):
            setattr(module, name, _JoinedBatchNorm(child, distributed))
        else:
            synchronise_batchnorm(child, distributed)
    return module


class _JoinedBatchNorm(_BatchNorm):
    """Takes over the parameters and buffers of a BatchNorm; normalises the joined batch.

    The norms of timm's image models contain dropout and an activation; these are taken over, too.
    """

    def __init__(self, norm: _BatchNorm, distributed: DistributedContext) -> None:
        super().__init__(
            norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats
        )
        self.weight, self.bias = norm.weight, norm.bias
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            setattr(self, name, getattr(norm, name))
        for name, follower in norm.named_children():
            self.add_module(name, follower)
        self.training, self.distributed = norm.training, distributed

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected at least 2 dimensions, got {input.dim()}")

    def forward(self, input: Tensor) -> Tensor:
        """Normalised `[N, C, ...]`."""
        if self.training:
            values = input.to(torch.promote_types(input.dtype, torch.float32))
            normalised, mean, variance, count = _Normalise.apply(
                values, self.weight, self.bias, self.eps, self.distributed
            )
            outputs: Tensor = normalised.to(input.dtype)
            if self.running_mean is not None and self.running_var is not None:
                assert isinstance(self.num_batches_tracked, Tensor)
                with torch.no_grad():
                    self.num_batches_tracked += 1
                    # Without a momentum, torch averages over all batches so far.
                    weight = self.momentum or 1 / self.num_batches_tracked.item()
                    self.running_mean.lerp_(mean, weight)
                    # As in torch, the running variance is the unbiased one.
                    unbiased = variance * (count / (count - 1)).to(variance)
                    self.running_var.lerp_(unbiased, weight)
        else:
            outputs = super().forward(input)
        for follower in self.children():
            outputs = follower(outputs)
        return outputs


class _Normalise(torch.autograd.Function):
    """`(values, weight, bias, eps, distributed) -> (normalised, mean, variance, count)`.

    By torch's own kernels and one exchange in each pass: written out in tensor operations it took
    longer than the convolutions do.
    """

    @staticmethod
    def forward(
        ctx: Any,
        values: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        distributed: DistributedContext,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        rows = values.numel() // values.shape[1]
        mean, variance = (
            each.double() for each in torch.batch_norm_update_stats(values, None, None, 0.0)
        )
        # Sums of squares lose digits where the mean is large: float64 has them to spare.
        own = torch.stack([mean, variance + mean.square(), torch.ones_like(mean)])
        sums = distributed.total(rows * own)
        mean, square, count = sums[0] / sums[2], sums[1] / sums[2], sums[2, 0]
        variance = (square - mean.square()).clamp(min=0)
        mean, variance = mean.to(values), variance.to(values)
        ctx.save_for_backward(values, weight, mean, variance, count)
        ctx.eps, ctx.distributed, ctx.affine = eps, distributed, weight is not None
        normalised = F.batch_norm(values, mean, variance, weight, bias, training=False, eps=eps)
        ctx.mark_non_differentiable(mean, variance, count)
        return normalised, mean, variance, count

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        values, weight, mean, variance, count = ctx.saved_tensors
        outer = gradients[0]
        _, along, shift = torch.ops.aten.native_batch_norm_backward(
            *(outer, values, weight, mean, variance, None, None, False, ctx.eps),
            [False, True, True],
        )
        # d loss / d normalised, and that times the normalised value, averaged over all processes.
        shifts, alongs = ctx.distributed.total(torch.stack([shift, along])) / count.to(values)
        inverse = (variance + ctx.eps).rsqrt()
        factor = inverse if weight is None else inverse * weight
        slope = -factor * inverse * alongs
        shape = [1, -1] + [1] * (values.dim() - 2)
        offset = -factor * shifts - slope * mean
        to_values = torch.addcmul(offset.view(shape), values, slope.view(shape))
        to_values = to_values.addcmul_(outer, factor.view(shape))
        # Of this process's rows only: DDP adds up the gradients of parameters by itself.
        to_parameters = (each if ctx.affine else None for each in (along, shift))
        return to_values, *to_parameters, None, None
