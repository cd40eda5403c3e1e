"""Checkpoints: written whole or not at all, in the background, and verified when they are read.

A checkpoint holds tensors and plain values only, so it loads with `weights_only=True` and no code
in it is run. It is one file, or a folder where the tensors are sharded over processes (FSDP2).
"""

import json
import os
import re
import shutil
import zipfile
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.tensor import DTensor

from vidcsl.distributed import DistributedContext
from vidcsl.errors import UserError
from vidcsl.io import log_message, write_atomically
from vidcsl.run_folder import RunFolder
from vidcsl.state import delete, read_sharded, tensors_of, write_sharded

_KEYS = {"config", "method", "position"}
SUFFIXES = (".pt", ".sharded", ".pieces")  # the last is what folders were once called
_NAME = re.compile(rf"epoch(\d+)_step(\d+)({'|'.join(map(re.escape, SUFFIXES))})")


@dataclass(frozen=True)
class Position:
    """How far training is: `step` steps of epoch `epoch` (from 0) are done."""

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
        position: how far training is.
        keep: how many of the newest checkpoints stay.
        keep_every: the checkpoints at the end of every so many epochs stay, too; 0: none.
        group: the processes that hold the tensors, if these are sharded; all of them call this.

    Raises:
        UserError: the disk is full or not writable; older checkpoints are untouched.
    """
    writes = group is None or dist.get_rank(group) == 0
    suffix = "pt" if group is None else "sharded"
    path = folder / f"epoch{position.epoch:05d}_step{position.step:06d}.{suffix}"
    partial = path.with_suffix(".partial")
    document = {**state, "position": {"epoch": position.epoch, "step": position.step}}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if writes:
            for leftover in folder.glob("epoch*.partial"):  # of a run that was killed
                delete(leftover)
        if group is None:
            with partial.open("wb") as file:
                torch.save(document, file)
                file.flush()
                os.fsync(file.fileno())  # or a power cut could leave the new name on no content
        else:
            write_sharded(partial, document, group=group)
        if writes:
            if path.is_dir():  # a damaged one at the same position: a folder cannot be replaced
                delete(path)
            partial.replace(path)
    except (OSError, RuntimeError, CheckpointException) as error:
        if writes:
            delete(partial)
        # torch reports a failed write as a RuntimeError of its own, or one failure per process.
        failures: list[BaseException] = [error]
        if isinstance(error, CheckpointException):
            failures = [failure[0] for failure in error.failures.values()]
        reasons = [each.strerror for each in failures if isinstance(each, OSError)]
        reason = next(filter(None, reasons), "the file was cut short, is the disk full?")
        raise UserError(
            f"cannot write checkpoint {path}: {reason}; older ones are intact: "
            "free some space, or make the folder writable, and continue with --resume"
        ) from error
    if writes:
        for old in list_checkpoints(folder)[:-keep]:
            epoch, step = position_of(old)
            if not (keep_every and step == 0 and epoch % keep_every == 0):
                delete(old)
    return path


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, oldest first."""
    found = [path for path in folder.glob("epoch*") if _NAME.fullmatch(path.name)]
    return sorted(found, key=position_of)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """What `save_checkpoint` wrote, on the CPU, its checksums verified.

    Raises:
        UserError: missing, damaged, or not a checkpoint of this project.
    """
    try:
        if path.is_dir():
            document = read_sharded(path)
        else:
            with zipfile.ZipFile(path) as archive:  # torch writes CRCs but does not compare them
                damaged = archive.testzip()
            if damaged:
                raise ValueError(f"{damaged} is damaged: its checksum is not that of its directory")
            document = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        missing = f"; {Path(error.filename).name} is missing in it" if path.is_dir() else ""
        raise UserError(f"no checkpoint at {path}{missing}") from None
    except Exception as error:  # torch raises many kinds for a file that is not a checkpoint
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"cannot load checkpoint {path}: {reason}") from error
    if not isinstance(document, dict) or not set(document) >= _KEYS:
        raise UserError(
            f"{path} is not a vidcsl checkpoint (it lacks one of {', '.join(sorted(_KEYS))})"
        )
    return document


def load_newest(
    folder: Path, *, note: Callable[[str], None] = log_message
) -> dict[str, Any] | None:
    """The newest checkpoint that can be read; None if the folder holds no checkpoint.

    Args:
        folder: of the checkpoints.
        note: called with a sentence for each newer one that is damaged; by default it logs.

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
            note(f"{failure}; the one before is used: {path.name}")
        return document
    if failures:
        raise failures[0]
    return None


def position_of(path: Path) -> tuple[int, int]:
    """Epochs, and steps of the next one, that were done when a checkpoint was written."""
    name = _NAME.fullmatch(path.name)
    assert name
    return int(name[1]), int(name[2])


# ----------------------------------------------------------------------
# Steps that diverged.

KEPT_STEPS = 2  # the checkpoints that they begin from may be large


@dataclass(frozen=True)
class KeptStep:
    """A step that diverged.

    Args:
        step: its number in the run, from 0.
        reason: why it counts as diverged.
        config: of the run, as text.
        checkpoint: from before the step; None: the run had none yet.
    """

    step: int
    reason: str
    config: str
    checkpoint: Path | None


def keep_step(folder: RunFolder, *, step: int, reason: str, config: str) -> Path:
    """Keep the newest checkpoint and the number of a step that diverged; where.

    Training is exact, so these are enough to repeat it, without its clips and weights. The
    checkpoint is linked, not copied, where the file system can: it costs space only once the run
    would have removed it.
    """
    place = folder.path / "replay"
    place.mkdir(exist_ok=True)
    path, newest = place / f"step{step:06}.json", list_checkpoints(folder.checkpoints)
    checkpoint = None
    if newest:
        checkpoint = place / f"step{step:06}{newest[-1].suffix}"
        delete(checkpoint)
        if newest[-1].is_dir():
            shutil.copytree(newest[-1], checkpoint, copy_function=_link)
        else:
            _link(newest[-1], checkpoint)
    told = {"step": step, "reason": reason, "config": config}
    told["checkpoint"] = checkpoint.name if checkpoint else None
    write_atomically(path, json.dumps(told, indent=1) + "\n")
    for old in sorted(place.glob("step*.json"), key=os.path.getmtime)[:-KEPT_STEPS]:
        for each in place.glob(f"{old.stem}*"):
            delete(each)
    return path


def _link(source: str | Path, target: str | Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        shutil.copyfile(source, target)


def read_step(path: Path) -> KeptStep:
    """What `keep_step` wrote.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        told = json.loads(path.read_text())
        checkpoint = path.parent / told["checkpoint"] if told["checkpoint"] else None
        return KeptStep(int(told["step"]), told["reason"], told["config"], checkpoint)
    except FileNotFoundError:
        raise UserError(f"no kept step at {path}; they lie in the folder replay of a run") from None
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise UserError(f"{path} is not a kept step of a run ({error})") from error


# ----------------------------------------------------------------------
# In the background.


class CheckpointWriter:
    """Writes checkpoints from a copy while training continues, one at a time.

    `save` waits until the checkpoint before is written: a slow disk slows training down, it does
    not fill the memory with copies. Sharded states are written by all processes together.

    Args:
        folder: of the checkpoints.
        distributed: the processes; all of them save together.
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
        self.keep, self.keep_every = keep, keep_every
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[Path] | None = None
        self._group: dist.ProcessGroup | None = None

    def save(self, state: Mapping[str, Any], position: Position) -> None:
        """Begin to write `state`, which may change as soon as this returns.

        Raises:
            UserError: this or the checkpoint before cannot be written; on all processes.
        """
        self.wait()
        sharded = self.distributed.size > 1 and any(
            isinstance(tensor, DTensor) for tensor in tensors_of(state)
        )
        if sharded and self._group is None:
            # A group of its own: the writer's messages must not mix with those of training steps.
            self._group = cast(dist.ProcessGroup, dist.new_group(backend="gloo"))
        if sharded or self.distributed.is_main:
            self._pending = self._thread.submit(
                save_checkpoint,
                self.folder,
                copied_to_cpu(state) if self.background else state,
                position,
                keep=self.keep,
                keep_every=self.keep_every,
                group=self._group if sharded else None,
            )
        if not self.background:
            self.wait()

    def wait(self) -> None:
        """Return once the checkpoint that was begun is written.

        Raises:
            UserError: it cannot be; on all processes.
        """
        error = self._pending.exception() if self._pending else None
        self._pending = None
        if self.distributed.any(error is not None):
            raise error or UserError(
                "the main process cannot write its checkpoint; see its message"
            )

    @property
    def failed(self) -> bool:
        """Whether the write has already failed on this process; `wait` raises the reason."""
        return (
            self._pending is not None and self._pending.done() and bool(self._pending.exception())
        )

    def close(self) -> None:
        """Let the write end, successful or not."""
        self._thread.shutdown()


def copied_to_cpu(state: Any) -> Any:
    """Nested dicts and lists with a copy of each tensor, on the CPU."""
    if isinstance(state, Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, Mapping):
        return {key: copied_to_cpu(each) for key, each in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(copied_to_cpu(each) for each in state)
    return state
