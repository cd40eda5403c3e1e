"""How a method is spread over the processes that train it: copied (DDP) or cut up (FSDP2)."""

from collections.abc import Callable

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from vidcsl.engine.distributed import World


def replicate(method: nn.Module, world: World) -> nn.Module:
    """Every process holds the whole method; gradients are averaged."""
    if world.size == 1:
        return method
    # Buffers need no broadcast: synchronised BatchNorm keeps them equal.
    return DistributedDataParallel(method, broadcast_buffers=False)


STRATEGIES: dict[str, Callable[[nn.Module, World], nn.Module]] = {"ddp": replicate}
"""`(method, world) -> what is called in training`; the method's parameters may be replaced."""
