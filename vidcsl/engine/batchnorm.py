"""BatchNorm over the joined batch of all processes, on any device.

torch's own SyncBatchNorm works on GPUs only; with this one, CPU processes compute what one process
would, and the tests can check it.
"""

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import convert_sync_batchnorm  # type: ignore[attr-defined]
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from vidcsl.engine.distributed import World


def synchronise(module: nn.Module, world: World) -> nn.Module:
    """`module` with every BatchNorm normalising over all processes; unchanged in a world of one."""
    if world.size == 1:
        return module
    if world.device.type == "cuda":
        synced: nn.Module = convert_sync_batchnorm(module)  # torch's own drops their activations
        return synced
    for name, child in module.named_children():
        if isinstance(child, _BatchNorm):
            setattr(module, name, _JoinedBatchNorm.like(child, world))
        else:
            synchronise(child, world)
    return module


class _JoinedBatchNorm(_BatchNorm):
    """Same parameters, buffers and results as a BatchNorm on the joined batch.

    Those of timm's image models hold modules, dropout and an activation, that follow the norm.
    """

    world: World

    @classmethod
    def like(cls, module: _BatchNorm, world: World) -> "_JoinedBatchNorm":
        joined = cls(
            module.num_features,
            module.eps,
            module.momentum,
            module.affine,
            module.track_running_stats,
        )
        joined.weight, joined.bias = module.weight, module.bias
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            setattr(joined, name, getattr(module, name))
        for name, follower in module.named_children():
            joined.add_module(name, follower)
        joined.training, joined.world = module.training, world
        return joined

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected at least 2 dimensions, got {input.dim()}")

    def forward(self, input: Tensor) -> Tensor:
        """Normalised `[N, C, ...]`."""
        outputs = self._normalised(input) if self.training else super().forward(input)
        for follower in self.children():
            outputs = follower(outputs)
        return outputs

    def _normalised(self, input: Tensor) -> Tensor:
        values = input.to(torch.promote_types(input.dtype, torch.float32))
        normalised, mean, variance, count = _Normalised.apply(
            values, self.weight, self.bias, self.eps, self.world
        )
        self._track(mean, variance, count)
        outputs: Tensor = normalised.to(input.dtype)
        return outputs

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        if self.running_mean is None or self.running_var is None:
            return
        assert isinstance(self.num_batches_tracked, Tensor)
        self.num_batches_tracked += 1
        # Without a momentum, torch averages over all batches so far.
        weight = self.momentum or 1 / self.num_batches_tracked.item()
        self.running_mean.lerp_(mean, weight)
        self.running_var.lerp_(variance * (count / (count - 1)).to(variance), weight)


class _Normalised(torch.autograd.Function):
    """`(values, weight, bias, eps, world) -> (normalised, mean, variance, count)` over processes.

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
        world: World,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        rows = values.numel() // values.shape[1]
        mean, variance = (
            each.double() for each in torch.batch_norm_update_stats(values, None, None, 0.0)
        )
        # Sums of squares lose digits where the mean is large: float64 has them to spare.
        own = torch.stack([mean, variance + mean.square(), torch.ones_like(mean)])
        sums = world.total(rows * own)
        mean, square, count = sums[0] / sums[2], sums[1] / sums[2], sums[2, 0]
        variance = (square - mean.square()).clamp(min=0)
        mean, variance = mean.to(values), variance.to(values)
        ctx.save_for_backward(values, weight, mean, variance, count)
        ctx.eps, ctx.world, ctx.affine = eps, world, weight is not None
        normalised = F.batch_norm(values, mean, variance, weight, bias, training=False, eps=eps)
        ctx.mark_non_differentiable(mean, variance, count)
        return normalised, mean, variance, count

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        values, weight, mean, variance, count = ctx.saved_tensors
        given = gradients[0]
        _, along, shift = torch.ops.aten.native_batch_norm_backward(
            *(given, values, weight, mean, variance, None, None, False, ctx.eps),
            [False, True, True],
        )
        # d loss / d normalised, and that times the normalised value, in the mean over all processes
        shifts, alongs = ctx.world.total(torch.stack([shift, along])) / count.to(values)
        inverse = (variance + ctx.eps).rsqrt()
        factor = inverse if weight is None else inverse * weight
        slope = -factor * inverse * alongs
        shape = [1, -1] + [1] * (values.dim() - 2)
        offset = -factor * shifts - slope * mean
        to_values = torch.addcmul(offset.view(shape), values, slope.view(shape))
        to_values = to_values.addcmul_(given, factor.view(shape))
        learned = (each if ctx.affine else None for each in (along, shift))
        return to_values, *learned, None, None
