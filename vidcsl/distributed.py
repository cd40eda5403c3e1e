"""The processes of a run: how they start, meet, exchange tensors and end. torchrun starts them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from vidcsl.errors import UserError


class DistributedContext:
    """All processes that train together, as one of them sees them; by default one process alone.

    Args:
        rank: which process this is, from 0.
        size: number of processes.
        device: of this process; by default the CPU.
    """

    def __init__(self, *, rank: int = 0, size: int = 1, device: torch.device | None = None) -> None:
        self.rank, self.size = rank, size
        self.device = torch.device("cpu") if device is None else device

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files and logs."""
        return self.rank == 0

    def gather(self, tensor: Tensor) -> Tensor:
        """`[N, ...]` of each process to `[size * N, ...]` in rank order, keeping gradients.

        N must be the same everywhere. The gradient of a row is the sum of what all processes
        send back for it, as if one process had held the joined batch.
        """
        if self.size == 1:
            return tensor
        # Integers carry no gradient, and autograd takes none.
        if not tensor.is_floating_point():
            return _all_gather(tensor, self.size)
        gathered: Tensor = _GatherWithGradient.apply(tensor, self.rank, self.size)
        return gathered

    def total(self, tensor: Tensor) -> Tensor:
        """Sum over processes, without gradient."""
        summed = tensor.detach().clone()
        if self.size > 1:
            dist.all_reduce(summed)
        return summed

    def any(self, flag: bool) -> bool:
        """Whether `flag` is true on any process."""
        # As a number: collectives of NCCL do not add up bools.
        return bool(self.total(torch.tensor(float(flag), device=self.device)) > 0)

    def collect(self, value: Any) -> list[Any]:
        """Picklable values of all processes, in rank order, on every process."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def broadcast(self, value: Any) -> Any:
        """The main process's value, picklable, on every process."""
        return self.collect(value if self.is_main else None)[0]

    def barrier(self) -> None:
        """Wait until every process is here."""
        if self.size > 1:
            dist.barrier()


class _GatherWithGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, rank: int, size: int) -> Tensor:
        ctx.rows, ctx.rank = len(tensor), rank
        return _all_gather(tensor, size)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        summed = gradients[0].contiguous()
        dist.all_reduce(summed)
        start = ctx.rank * ctx.rows
        return summed[start : start + ctx.rows], None, None


def _all_gather(tensor: Tensor, size: int) -> Tensor:
    parts = [torch.empty_like(tensor) for _ in range(size)]
    dist.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)


@contextmanager
def distributed_context(device: str = "auto") -> Iterator[DistributedContext]:
    """The processes that torchrun describes in the environment, or one process alone.

    Args:
        device: auto, cpu or cuda.

    Raises:
        UserError: no GPU is visible but one is required, or there are more processes than GPUs.
    """
    gpus = torch.cuda.device_count()
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if device == "cpu" or (device == "auto" and gpus == 0):
        chosen = torch.device("cpu")
    elif gpus == 0:
        raise UserError("DEVICE is cuda but no GPU is visible; use DEVICE cpu or auto")
    elif local_size > gpus:
        raise UserError(
            f"{local_size} processes on a machine with {gpus} GPU(s); "
            f"start at most {gpus} (torchrun --nproc-per-node={gpus}) or use DEVICE cpu"
        )
    else:
        torch.cuda.set_device(local_rank)
        chosen = torch.device("cuda", local_rank)
    if "RANK" not in os.environ:
        yield DistributedContext(rank=0, size=1, device=chosen)
        return
    # NCCL exchanges tensors of GPUs only, gloo is the fast one between CPUs.
    backend = "nccl" if chosen.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=timedelta(minutes=30), **_rendezvous())
    try:
        yield DistributedContext(rank=dist.get_rank(), size=dist.get_world_size(), device=chosen)
    finally:
        dist.destroy_process_group()


def _rendezvous() -> dict[str, Any]:
    """Arguments of `init_process_group` that say where the processes meet; empty: torch's default.

    By default torchrun's agents lend their store to the processes and keep it when they restart
    them; these then find the addresses of the dead and hang (pytorch/pytorch issue 135712). So each
    restart gets a store prefix of its own.

    Raises:
        UserError: several nodes share the store; each counts its restarts by itself.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return {}
    restarts = int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", 0))
    if restarts and int(os.environ.get("GROUP_WORLD_SIZE", 1)) > 1:
        raise UserError(
            "restarts on several nodes need TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in the "
            "environment of torchrun, and its --rdzv-backend=c10d"
        )
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(host, port, size, is_master=False)  # type: ignore[attr-defined]
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    own = dist.PrefixStore(f"attempt{attempt}", store)  # type: ignore[attr-defined]
    return {"store": own, "rank": rank, "world_size": size}
