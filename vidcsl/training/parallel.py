"""How a method is computed: compiled, recomputed, replicated or sharded over the processes.

None of it changes what is learned, except for the order in which numbers are added.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
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
            method.register_forward_pre_hook(_begin_step)
        if self.recompute:
            for block in blocks_of(method.get_submodule("encoder")):
                block.forward = partial(recomputed, block.forward, owner=block)
        return spread(method, distributed) if spread else method


def _begin_step(*_: object) -> None:
    """Let CUDA graphs reuse the memory of the previous step's outputs."""
    torch.compiler.cudagraph_mark_step_begin()


def _make_contiguous(method: nn.Module) -> None:
    for parameter in method.parameters():
        parameter.data = parameter.data.contiguous()
