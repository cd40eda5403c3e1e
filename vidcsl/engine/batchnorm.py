"""BatchNorm over the joined batch of all processes, on any device.

torch's own SyncBatchNorm works on GPUs only; with this one, CPU processes compute what one process
would, and the tests can check it.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from vidcsl.engine.distributed import World


def synchronise(module: nn.Module, world: World) -> nn.Module:
    """`module` with every BatchNorm normalising over all processes; unchanged in a world of one."""
    if world.size == 1:
        return module
    if world.device.type == "cuda":
        synced: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(module)
        return synced
    for name, child in module.named_children():
        if isinstance(child, _BatchNorm):
            setattr(module, name, _JoinedBatchNorm.like(child, world))
        else:
            synchronise(child, world)
    return module


class _JoinedBatchNorm(_BatchNorm):
    """Same parameters, buffers and results as a BatchNorm on the joined batch."""

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
        joined.training, joined.world = module.training, world
        return joined

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected at least 2 dimensions, got {input.dim()}")

    def forward(self, input: Tensor) -> Tensor:
        """Normalised `[N, C, ...]`."""
        if not self.training:
            return super().forward(input)
        dims = [0, *range(2, input.dim())]
        shape = [1, -1] + [1] * (input.dim() - 2)
        values = input.to(torch.promote_types(input.dtype, torch.float32))
        count = self.world.total(values.new_tensor(values.numel() // values.shape[1]))
        mean = _total(values.sum(dim=dims), self.world) / count
        centred = values - mean.view(shape)
        # The variance from centred values: sums of squares lose digits where the mean is large.
        variance = _total(centred.square().sum(dim=dims), self.world) / count
        self._track(mean.detach(), variance.detach(), count)
        scale = (variance + self.eps).rsqrt()
        if self.affine:
            scale = scale * self.weight
            return (centred * scale.view(shape) + self.bias.view(shape)).to(input.dtype)
        return (centred * scale.view(shape)).to(input.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        if self.running_mean is None or self.running_var is None:
            return
        assert isinstance(self.num_batches_tracked, Tensor)
        self.num_batches_tracked += 1
        # Without a momentum, torch averages over all batches so far.
        weight = self.momentum or 1 / self.num_batches_tracked.item()
        self.running_mean.lerp_(mean, weight)
        self.running_var.lerp_(variance * count / (count - 1), weight)


class _Total(torch.autograd.Function):
    """Sum over processes whose gradient is summed over processes too."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, world: World) -> Tensor:
        ctx.world = world
        return world.total(tensor)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return ctx.world.total(gradients[0]), None


def _total(tensor: Tensor, world: World) -> Tensor:
    summed: Tensor = _Total.apply(tensor, world)
    return summed
