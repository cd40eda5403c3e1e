"""How a method is computed: compiled, recomputed, replicated or sharded; joint BatchNorm.

None of it changes what is learned, except for the order in which numbers are added.
"""

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
from vidcsl.methods.adversarial import Attacking
from vidcsl.models import Encoder
from vidcsl.models.encoder import blocks_of, recomputed
from vidcsl.registry import Registry

PARALLEL: Registry[Callable[[nn.Module, DistributedContext], nn.Module]] = Registry(
    "TRAIN.PARALLEL", default="ddp", meaning="how several processes share the method"
)
"""`(method, distributed) -> what training calls`; may replace parameters of the method."""

COMPILED = ("default", "reduce-overhead", "max-autotune")

# Blocks of one class but of many shapes, online and momentum encoder, with and without gradient:
# each is a program of its own, and torch gives up at 8 of one class.
_PROGRAMS = 128


@PARALLEL.register("ddp", "each holds the whole method, gradients are averaged")
def replicate(method: nn.Module, distributed: DistributedContext) -> nn.Module:  # noqa: ARG001
    """Every process holds the whole method; gradients are averaged."""
    # Buffers need no broadcast: synchronised BatchNorm keeps them equal. torch 2.14 renames this.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
        return DistributedDataParallel(method, broadcast_buffers=False)


@PARALLEL.register(
    "fsdp",
    "each holds a part of every parameter, and one block at a time is gathered; for encoders too "
    "large for one GPU",
)
def shard(method: nn.Module, distributed: DistributedContext) -> nn.Module:
    """Every process holds a part of each parameter, and the whole of one block at a time (FSDP2).

    Momentum encoders are sharded as well. Zhao et al., "PyTorch FSDP", VLDB 2023.
    """
    _make_contiguous(method)  # FSDP2 takes no other layout of weights; that of clips stays
    mesh = init_device_mesh(distributed.device.type, (distributed.size,))
    for block in blocks_of(method):
        fully_shard(block, mesh=mesh)
    fully_shard(method, mesh=mesh)
    return method


@dataclass(frozen=True)
class Strategy:
    """What is done to a method before it is trained.

    Args:
        parallel: in PARALLEL; with one process nothing is replicated or sharded.
        recompute: drop the activations of each block of the encoder after the forward pass, and
            compute them again for its gradient (Chen et al., "Training Deep Nets with Sublinear
            Memory Cost", 2016).
        compiled: a mode of `torch.compile` in COMPILED; "": not compiled.
        channels_last: layout of clips and of the weights of convolutions.
    """

    parallel: str = "ddp"
    recompute: bool = False
    compiled: str = ""
    channels_last: bool = True

    def prepare(self, method: nn.Module, distributed: DistributedContext) -> nn.Module:
        """Change `method` in place; what training calls instead of it.

        Raises:
            UserError: the method attacks in each step and is to be sharded.
        """
        spread = PARALLEL[self.parallel] if distributed.size > 1 else None
        if spread is shard and isinstance(method, Attacking) and method.replays == 1:
            # The attack's backward pass, inside the step's forward pass, ends with FSDP2 freeing
            # the gathered parameters that the rest of the forward pass needs.
            raise UserError(
                "TRAIN.PARALLEL fsdp does not go with an attack in each step: set it to ddp, or "
                "ADVERSARIAL.REPLAYS above 1"
            )
        if not self.channels_last:
            for module in method.modules():
                if isinstance(module, Encoder):
                    module.channels_last = False
            _make_contiguous(method)
        if self.compiled:
            named = dict(method.named_modules())
            encoders = [named[name] for name in ("encoder", "teacher.encoder") if name in named]
            backbones = [getattr(encoder, "backbone", encoder) for encoder in encoders]
            # What is recomputed or gathered block by block can be compiled block by block only.
            whole = not (self.recompute or spread is shard)
            torch._dynamo.config.recompile_limit = max(
                _PROGRAMS, torch._dynamo.config.recompile_limit
            )
            for each in backbones if whole else blocks_of(method):
                each.forward = torch.compile(each.forward, mode=self.compiled)
            # Lets CUDA graphs reuse the memory of the previous step's outputs.
            method.register_forward_pre_hook(lambda *_: torch.compiler.cudagraph_mark_step_begin())
        if self.recompute:
            for block in blocks_of(method.get_submodule("encoder")):
                block.forward = partial(recomputed, block.forward, owner=block)
        return spread(method, distributed) if spread else method


def _make_contiguous(method: nn.Module) -> None:
    for parameter in method.parameters():
        parameter.data = parameter.data.contiguous()


# ----------------------------------------------------------------------
# BatchNorm over the joined batch of all processes, on any device.
#
# torch's own SyncBatchNorm works on GPUs only. With this one, CPU processes compute what a single
# process would, and the tests can compare the two.


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
