"""Checkpoints: written whole, in the background, read back and compared."""

import os
import re
import zipfile
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.tensor import DTensor

from vidcsl.distributed import DistributedContext
from vidcsl.errors import UserError
from vidcsl.io import say
from vidcsl.state import copied, read_pieces, remove, tensors_of, write_pieces

# ----------------------------------------------------------------------
# Checkpoints: written whole or not at all, read as plain data.
#
# A checkpoint holds tensors and plain values only, so it loads with `weights_only=True`. No
# generator states are needed: every random number is derived from (seed, epoch, sample).

_KEYS = {"config", "method", "position"}
_NAME = re.compile(r"epoch(\d+)_step(\d+)\.(pt|pieces)")


@dataclass(frozen=True)
class Position:
    """Where training stands: `step` steps of epoch `epoch` (from 0) are done."""

    epoch: int = 0
    step: int = 0


def save_checkpoint(
    folder: Path,
    state: Mapping[str, Any],
    position: Position,
    *,
    keep: int,
    keep_every: int = 0,
    group: dist.ProcessGroup | None = None,
) -> Path:
    """Write `state` whole or not at all, then delete old checkpoints.

    Args:
        folder: of the checkpoints.
        state: nested dicts and lists of plain values and tensors.
        position: where training stands.
        keep: newest checkpoints that stay.
        keep_every: further ones that stay: those at the end of every so many epochs; 0: none.
        group: where the tensors are cut up, the processes that hold them; all take part.

    Raises:
        UserError: the disk is full or not writable; older checkpoints are left as they were.
    """
    writes = group is None or dist.get_rank(group) == 0
    suffix = "pt" if group is None else "pieces"
    path = folder / f"epoch{position.epoch:05d}_step{position.step:06d}.{suffix}"
    partial = path.with_suffix(".partial")
    document = {**state, "position": {"epoch": position.epoch, "step": position.step}}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if writes:
            for left in folder.glob("epoch*.partial"):  # of a run that was killed
                remove(left)
        if group is None:
            _write_file(partial, document)
        else:
            write_pieces(partial, document, group=group)
        if writes:
            if path.is_dir():  # a damaged one at the same position: a folder cannot be replaced
                remove(path)
            partial.replace(path)
    except (OSError, RuntimeError, CheckpointException) as error:
        if writes:
            remove(partial)
        raise UserError(
            f"cannot write checkpoint {path}: {_why_not_written(error)}; older ones are intact: "
            "make room (or the folder writable) and continue with --resume"
        ) from error
    for old in _outdated(folder, keep=keep, keep_every=keep_every) if writes else []:
        remove(old)
    return path


def list_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints in `folder`, oldest first."""
    found = {path: _NAME.fullmatch(path.name) for path in folder.glob("epoch*")}
    ranks = {path: tuple(map(int, name.groups()[:2])) for path, name in found.items() if name}
    return sorted(ranks, key=lambda path: ranks[path])


def load_checkpoint(path: Path) -> dict[str, Any]:
    """The document that `save_checkpoint` wrote, on the CPU, its checksums compared.

    Raises:
        UserError: missing, damaged, or not a checkpoint of this project.
    """
    try:
        document = read_pieces(path) if path.is_dir() else _read_file(path)
    except FileNotFoundError as error:
        lacks = f"; it lacks {Path(error.filename).name}" if path.is_dir() else ""
        raise UserError(f"no checkpoint at {path}{lacks}") from None
    except Exception as error:  # torch raises many kinds for a file that is not a checkpoint
        raise UserError(f"cannot load checkpoint {path}: {_first_line(error)}") from error
    if not isinstance(document, dict) or not set(document) >= _KEYS:
        raise UserError(f"{path} is not a vidcsl checkpoint (it lacks {', '.join(sorted(_KEYS))})")
    return document


def load_newest(
    folder: Path, *, note: Callable[[str], None] | None = None
) -> dict[str, Any] | None:
    """The newest checkpoint that can be read, or None where there is none at all.

    Args:
        folder: of the checkpoints.
        note: told, in a sentence, of each newer one that is damaged; by default on stderr.

    Raises:
        UserError: there are checkpoints and none can be read.
    """
    failures: list[UserError] = []
    for path in reversed(list_checkpoints(folder)):
        try:
            document = load_checkpoint(path)
        except UserError as error:
            failures.append(error)
            continue
        for failure in failures:
            (note or say)(f"{failure}; the one before is taken: {path.name}")
        return document
    if failures:
        raise failures[0]
    return None


def _write_file(path: Path, document: Mapping[str, Any]) -> None:
    with path.open("wb") as file:
        torch.save(document, file)
        file.flush()
        os.fsync(file.fileno())


def _read_file(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:  # torch itself does not compare the CRCs that it writes
        damaged = archive.testzip()
    if damaged:
        raise ValueError(f"{damaged} is damaged: its checksum is not that of its directory")
    return torch.load(path, map_location="cpu", weights_only=True)


def _outdated(folder: Path, *, keep: int, keep_every: int) -> list[Path]:
    def stays(path: Path) -> bool:
        name = _NAME.fullmatch(path.name)
        assert name
        epoch, step = int(name[1]), int(name[2])
        return bool(keep_every) and step == 0 and epoch % keep_every == 0

    return [path for path in list_checkpoints(folder)[:-keep] if not stays(path)]


def _why_not_written(error: BaseException) -> str:
    """What the system says; torch reports a write that failed as a RuntimeError of its own."""
    causes = [error]
    if isinstance(error, CheckpointException):  # of several processes
        causes = [failure[0] for failure in error.failures.values()]
    said = [cause.strerror for cause in causes if isinstance(cause, OSError) and cause.strerror]
    return said[0] if said else "the file was cut short, is the disk full?"


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


# ----------------------------------------------------------------------
# Checkpoints written in the background, from a copy, while training goes on.


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
        distributed: DistributedContext,
        *,
        keep: int = 2,
        keep_every: int = 0,
        background: bool = True,
    ) -> None:
        self.folder, self.distributed, self.background = folder, distributed, background
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
        if group or self.distributed.is_main:
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
        if self.distributed.any(error is not None):
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
        if self.distributed.size == 1 or not any(isinstance(t, DTensor) for t in tensors_of(state)):
            return None
        if self._group is None:
            self._group = cast(dist.ProcessGroup, dist.new_group(backend="gloo"))
        return self._group
