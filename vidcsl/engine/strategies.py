"""How a method is computed: compiled, recomputed, copied to all processes or cut up over them.

None of it changes what is learned, but for the order in which numbers are added.
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

from vidcsl.engine.distributed import World
from vidcsl.errors import UserError
from vidcsl.models import Encoder
from vidcsl.models.blocks import blocks_of
from vidcsl.models.chunks import recomputed
from vidcsl.objectives.adversarial.inner import Attacking

# Blocks of one class but of many shapes, online and momentum encoder, with and without gradient:
# each is a program of its own, and torch gives up at 8 of one class.
_PROGRAMS = 128


def replicate(method: nn.Module, _world: World) -> nn.Module:
    """Every process holds the whole method; gradients are averaged."""
    # Buffers need no broadcast: synchronised BatchNorm keeps them equal. torch 2.14 renames this.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
        return DistributedDataParallel(method, broadcast_buffers=False)


def shard(method: nn.Module, world: World) -> nn.Module:
    """Every process holds a part of each parameter, and the whole of one block at a time (FSDP2).

    Momentum encoders are cut up as well. Zhao et al., "PyTorch FSDP", VLDB 2023.
    """
    _make_contiguous(method)  # FSDP2 takes no other layout of weights; that of clips stays
    mesh = init_device_mesh(world.device.type, (world.size,))
    for block in blocks_of(method):
        fully_shard(block, mesh=mesh)
    fully_shard(method, mesh=mesh)
    return method


PARALLEL: dict[str, Callable[[nn.Module, World], nn.Module]] = {"ddp": replicate, "fsdp": shard}
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

    def prepare(self, method: nn.Module, world: World) -> nn.Module:
        """Change `method` in place; what is to be called in its place in training.

        Raises:
            UserError: it attacks in each step and is to be cut up.
        """
        spread = PARALLEL[self.parallel] if world.size > 1 else None
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
        return spread(method, world) if spread else method


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
