"""Checkpoints written in the background, from a copy, while training goes on."""

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import torch.distributed as dist
from torch.distributed.tensor import DTensor

from vidcsl.engine.checkpoint import Position, save_checkpoint
from vidcsl.engine.distributed import World
from vidcsl.errors import UserError
from vidcsl.pieces import copied, tensors_of


class CheckpointWriter:
    """Writes one checkpoint at a time; where the tensors are cut up, with all processes.

    A second one waits until the first is written: a slow disk slows the training down, it does not
    fill the memory with copies.

    Args:
        folder: of the checkpoints.
        world: the processes; all of them save together.
        keep, keep_every: see `save_checkpoint`.
        background: return from `save` as soon as the state is copied.
    """

    def __init__(
        self,
        folder: Path,
        world: World,
        *,
        keep: int = 2,
        keep_every: int = 0,
        background: bool = True,
    ) -> None:
        self.folder, self.world, self.background = folder, world, background
        self._keeping = {"keep": keep, "keep_every": keep_every}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[Path] | None = None
        self._group: dist.ProcessGroup | None = None

    def save(self, state: Mapping[str, Any], position: Position) -> None:
        """Begin to write `state`, which may change as soon as this returns.

        Raises:
            UserError: this or the checkpoint before could not be written, on all processes.
        """
        self.wait()
        group = self._group_of(state)
        if group or self.world.is_main:
            state = copied(state) if self.background else state
            self._pending = self._thread.submit(
                save_checkpoint, self.folder, state, position, group=group, **self._keeping
            )
        if not self.background:
            self.wait()

    def wait(self) -> None:
        """Return once what was begun is written.

        Raises:
            UserError: it could not be, on all processes.
        """
        error = self._pending.exception() if self._pending else None
        self._pending = None
        if self.world.any(error is not None):
            raise error or UserError("the main process cannot write its checkpoint, see there")

    @property
    def failed(self) -> bool:
        """Whether what was begun has already failed on this process; `wait` says why."""
        return (
            self._pending is not None and self._pending.done() and bool(self._pending.exception())
        )

    def close(self) -> None:
        """Let what was begun end, whatever becomes of it."""
        self._thread.shutdown()

    def _group_of(self, state: Mapping[str, Any]) -> dist.ProcessGroup | None:
        """Processes that write together: a group of their own, beside what the training sends."""
        if self.world.size == 1 or not any(isinstance(t, DTensor) for t in tensors_of(state)):
            return None
        if self._group is None:
            self._group = cast(dist.ProcessGroup, dist.new_group(backend="gloo"))
        return self._group
