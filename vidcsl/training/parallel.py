"""Compiled, recomputed, replicated or sharded methods; synchronised BatchNorm."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import convert_sync_batchnorm  # type: ignore[attr-defined]
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from vidcsl.distributed import DistributedContext
from vidcsl.errors import UserError
from vidcsl.methods.adversarial.inner import Attacking
from vidcsl.models import Encoder
from vidcsl.models.encoder import blocks_of, recomputed

# ----------------------------------------------------------------------
# BatchNorm over the joined batch of all processes, on any device.
#
# torch's own SyncBatchNorm works on GPUs only; with this one, CPU processes compute what one
# process would, and the tests can check it.


def synchronise(module: nn.Module, distributed: DistributedContext) -> nn.Module:
    """`module` with every BatchNorm normalising over all processes; unchanged in a world of one."""
    if distributed.size == 1:
        return module
    if distributed.device.type == "cuda":
        synced: nn.Module = convert_sync_batchnorm(module)  # torch's own drops their activations
        return synced
    for name, child in module.named_children():
        if isinstance(child, _BatchNorm):
            setattr(module, name, _JoinedBatchNorm.like(child, distributed))
        else:
            synchronise(child, distributed)
    return module


class _JoinedBatchNorm(_BatchNorm):
    """Same parameters, buffers and results as a BatchNorm on the joined batch.

    Those of timm's image models hold modules, dropout and an activation, that follow the norm.
    """

    distributed: DistributedContext

    @classmethod
    def like(cls, module: _BatchNorm, distributed: DistributedContext) -> "_JoinedBatchNorm":
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
        joined.training, joined.distributed = module.training, distributed
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
            values, self.weight, self.bias, self.eps, self.distributed
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
        given = gradients[0]
        _, along, shift = torch.ops.aten.native_batch_norm_backward(
            *(given, values, weight, mean, variance, None, None, False, ctx.eps),
            [False, True, True],
        )
        # d loss / d normalised, and that times the normalised value, in the mean over all processes
        shifts, alongs = ctx.distributed.total(torch.stack([shift, along])) / count.to(values)
        inverse = (variance + ctx.eps).rsqrt()
        factor = inverse if weight is None else inverse * weight
        slope = -factor * inverse * alongs
        shape = [1, -1] + [1] * (values.dim() - 2)
        offset = -factor * shifts - slope * mean
        to_values = torch.addcmul(offset.view(shape), values, slope.view(shape))
        to_values = to_values.addcmul_(given, factor.view(shape))
        learned = (each if ctx.affine else None for each in (along, shift))
        return to_values, *learned, None, None


# ----------------------------------------------------------------------
# How a method is computed: compiled, recomputed, copied to all processes or cut up over them.
#
# None of it changes what is learned, but for the order in which numbers are added.

# Blocks of one class but of many shapes, online and momentum encoder, with and without gradient:
# each is a program of its own, and torch gives up at 8 of one class.
_PROGRAMS = 128


def replicate(method: nn.Module, _distributed: DistributedContext) -> nn.Module:
    """Every process holds the whole method; gradients are averaged."""
    # Buffers need no broadcast: synchronised BatchNorm keeps them equal. torch 2.14 renames this.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
        return DistributedDataParallel(method, broadcast_buffers=False)


def shard(method: nn.Module, distributed: DistributedContext) -> nn.Module:
    """Every process holds a part of each parameter, and the whole of one block at a time (FSDP2).

    Momentum encoders are cut up as well. Zhao et al., "PyTorch FSDP", VLDB 2023.
    """
    _make_contiguous(method)  # FSDP2 takes no other layout of weights; that of clips stays
    mesh = init_device_mesh(distributed.device.type, (distributed.size,))
    for block in blocks_of(method):
        fully_shard(block, mesh=mesh)
    fully_shard(method, mesh=mesh)
    return method


PARALLEL: dict[str, Callable[[nn.Module, DistributedContext], nn.Module]] = {
    "ddp": replicate,
    "fsdp": shard,
}
"""`(method, world) -> what is called in training`; parameters of the method may be replaced."""

COMPILED = ("default", "reduce-overhead", "max-autotune")


@dataclass(frozen=True)
class Strategy:
    """What is done to a method before it is trained.

    Args:
        parallel: in PARALLEL; of one process nothing is copied or cut up.
        recompute: drop the activations of each block of the encoder after the forward pass, and
            compute them again when its gradient comes (Chen et al., "Training Deep Nets with
            Sublinear Memory Cost", 2016).
        compiled: a mode of `torch.compile` in COMPILED; "": as it is written.
        channels_last: layout of clips and of the weights of convolutions.
    """

    parallel: str = "ddp"
    recompute: bool = False
    compiled: str = ""
    channels_last: bool = True

    def prepare(self, method: nn.Module, distributed: DistributedContext) -> nn.Module:
        """Change `method` in place; what is to be called in its place in training.

        Raises:
            UserError: it attacks in each step and is to be cut up.
        """
        spread = PARALLEL[self.parallel] if distributed.size > 1 else None
        if spread is shard and isinstance(method, Attacking) and method.replays == 1:
            # Its backward pass, inside the step's forward pass, ends with FSDP2 giving up the
            # gathered parameters that the rest of the forward pass needs.
            raise UserError(
                "TRAIN.PARALLEL fsdp does not go with an attack in each step: set it to ddp, or "
                "ADVERSARIAL.REPLAYS above 1"
            )
        if not self.channels_last:
            _lay_out_plainly(method)
        if self.compiled:
            # What is recomputed or gathered block by block can be compiled block by block only.
            whole = not (self.recompute or spread is shard)
            for each in _backbones(method) if whole else blocks_of(method):
                _compile(each, self.compiled)
            method.register_forward_pre_hook(_begin_step)
        if self.recompute:
            for block in blocks_of(method.get_submodule("encoder")):
                block.forward = partial(recomputed, block.forward, owner=block)
        return spread(method, distributed) if spread else method


def _begin_step(*_: object) -> None:
    """Tell CUDA graphs that what they gave in the step before is needed no more."""
    torch.compiler.cudagraph_mark_step_begin()


def _lay_out_plainly(method: nn.Module) -> None:
    for module in method.modules():
        if isinstance(module, Encoder):
            module.channels_last = False
    _make_contiguous(method)


def _make_contiguous(method: nn.Module) -> None:
    for parameter in method.parameters():
        parameter.data = parameter.data.contiguous()


def _backbones(method: nn.Module) -> list[nn.Module]:
    """Of the encoder and, if there is one, the momentum encoder."""
    named = dict(method.named_modules())
    encoders = [named[name] for name in ("encoder", "teacher.encoder") if name in named]
    return [getattr(encoder, "backbone", encoder) for encoder in encoders]


def _compile(module: nn.Module, mode: str) -> None:
    torch._dynamo.config.recompile_limit = max(_PROGRAMS, torch._dynamo.config.recompile_limit)
    module.forward = torch.compile(module.forward, mode=mode)
