"""Files and the terminal: atomic writes, locks, arrays, progress."""

import ctypes
import fcntl
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, TypeVar
from zipfile import BadZipFile

import numpy as np
import torch
from rich.console import Console, Group
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from torch import Tensor

from vidcsl.errors import UserError

# ----------------------------------------------------------------------
# Host memory that was freed but is still held by the process.


def return_freed_memory(device: torch.device) -> None:
    """Give what was freed back to the system, where `device` is the CPU and its library can.

    glibc before 2.38 often does not use freed aligned memory again where small live objects lie
    between: long loops over large tensors grow without this. It costs some page faults.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if device.type == "cpu" else None
    if trim:
        trim(0)


# ----------------------------------------------------------------------
# Lists of videos: which files, of which class, cut from which source.
#
# Two forms are read. Ours is CSV with the header `video,class,group`, one video a line, its path
# relative to a root folder; class and group may be empty. Where the videos are packed in tar
# shards, `shard,offset,size,crc32` follow and say where. A list that ends in `.txt` has the form
# in which UCF101 is published: `Class/v_Class_g01_c01.avi [number]`, the class being the folder
# and the group the file's name up to its clip number.


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Give a hidden path to write to, which takes the place of `path` once the block succeeds."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def file_state(path: Path) -> str:
    """Size and time of a file, as text; of a folder those of all files in it. Raises OSError."""
    state = path.stat()
    if not path.is_dir():
        return f"{state.st_size} {state.st_mtime_ns}"
    # A file that is rewritten in place changes nothing of the folder itself.
    files = sorted((file.name, file_state(file)) for file in path.iterdir() if file.is_file())
    return hashlib.sha256(repr(files).encode()).hexdigest()


# ----------------------------------------------------------------------
# A run's folder: what is written where, whole or not at all.

PATIENCE = 10  # seconds in which a process that was killed lets go of its folder


def locked(file: TextIO, *, waits: Callable[[], bool]) -> bool:
    """Whether the lock of a file, which ends with its process, could be had; tried while `waits`.

    Raises:
        OSError: the file system has no locks.
    """
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not waits():
                return False
            time.sleep(0.2)
        else:
            return True


def write_atomically(path: Path, text: str) -> None:
    """Write beside, then rename: a reader or a crash never sees half a file."""
    with replacing(path) as partial:
        partial.write_text(text)


# ----------------------------------------------------------------------
# Named arrays as a file: written whole or not at all, read as plain numbers.

_DAMAGED = (OSError, ValueError, KeyError, EOFError, BadZipFile)


def save_arrays(path: Path, arrays: Mapping[str, Any], *, compressed: bool = False) -> None:
    """Write tensors, numbers and words to an `.npz` file."""
    plain: dict[str, Any] = {name: np.asarray(array) for name, array in arrays.items()}
    save: Callable[..., None] = np.savez_compressed if compressed else np.savez
    with replacing(path) as partial, partial.open("wb") as file:
        save(file, **plain)


def load_arrays(path: Path, names: Sequence[str]) -> list[Tensor]:
    """What `save_arrays` wrote under these names.

    Raises:
        UserError: the file is damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            return [torch.from_numpy(stored[name]) for name in names]
    except _DAMAGED as error:
        raise UserError(f"{path} is damaged ({error}); remove it") from error


def key_of(path: Path) -> str:
    """The word stored as `key`, by which a file is known to be up to date; empty if unreadable."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            return str(stored["key"])
    except _DAMAGED:
        return ""


# ----------------------------------------------------------------------
# What a person and a plot see of a long job: a live view or plain lines, log.jsonl, trackers.

if TYPE_CHECKING:  # preparing videos shows its progress without torch, whose import is slow
    from vidcsl.training.monitor import Tracker

Item = TypeVar("Item")


def say(text: str) -> None:
    """One line on stderr, from the first process alone."""
    if os.environ.get("RANK", "0") == "0":
        print(f"vidcsl: {text}", file=sys.stderr, flush=True)


class Log:
    """Appends one JSON object a line, and hands numbers to trackers.

    Args:
        path: log.jsonl; None: nothing is written (processes other than the main one).
        trackers: who else is told; one that fails is named and left, and the run goes on.
    """

    def __init__(self, path: Path | None, trackers: Sequence["Tracker"] = ()) -> None:
        self._file: TextIO | None = path.open("a") if path else None
        self._trackers = list(trackers)

    def write(self, kind: str, **values: Any) -> None:
        """One line, on disk when this returns."""
        if self._file:
            self._file.write(json.dumps({"kind": kind, **values}) + "\n")
            self._file.flush()
        numbers = {f"{kind}/{k}": v for k, v in values.items() if isinstance(v, float)}
        if numbers:
            self._tell("log", numbers, step=values.get("step", 0))

    def close(self) -> None:
        """Flush and close."""
        if self._file:
            self._file.close()
        self._tell("close")

    def _tell(self, what: str, *arguments: Any, **options: Any) -> None:
        for tracker in list(self._trackers):
            try:
                getattr(tracker, what)(*arguments, **options)
            except Exception as error:  # of whatever kind: a server is no reason to stop training
                self._trackers.remove(tracker)
                name, reason = type(tracker).__name__, (str(error).splitlines() or [""])[0]
                say(f"{name} fails and is left: {reason}")


class Meter:
    """Time spent waiting for data against time spent in all, and clips done."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._waited = 0.0
        self._clips = 0

    def watch(self, items: Iterable[Item]) -> Iterator[Item]:
        """The items, timing how long each is waited for."""
        iterator = iter(items)
        while True:
            before = time.perf_counter()
            try:
                item = next(iterator)
            except StopIteration:
                return
            self._waited += time.perf_counter() - before
            yield item

    def add(self, clips: int) -> None:
        """Count clips that are done."""
        self._clips += clips

    def rates(self) -> dict[str, float]:
        """Clips a second and share of time waited, since the last call."""
        now = time.perf_counter()
        elapsed = max(now - self._started, 1e-9)
        rates = {"clips_per_second": self._clips / elapsed, "data_wait": self._waited / elapsed}
        self._started, self._waited, self._clips = now, 0.0, 0
        return rates


class Bar:
    """A live view on a terminal, a plain line every `interval` seconds elsewhere.

    The view is a bar with the time that is left, and the newest notes in a row below it.
    """

    def __init__(
        self,
        title: str,
        *,
        total: int,
        done: int = 0,
        shown: bool = True,
        interval: float = 30.0,
        console: Console | None = None,
    ) -> None:
        self._title, self._total, self._done, self._first = title, total, done, done
        self._shown, self._interval = shown, interval
        self._notes: dict[str, float | str] = {}
        self._started = self._spoke = time.monotonic()
        console = console or Console(stderr=True)
        self._view = _View(title, total, done, console) if shown and console.is_terminal else None

    def advance(self, count: int = 1, **notes: float | str) -> None:
        """`count` more are done; the newest `notes` are shown beside the bar."""
        self._done += count
        self._total = max(self._total, self._done)  # a process's share is not even
        self._notes.update(notes)
        since = time.monotonic() - self._spoke
        ended = self._done >= self._total
        if self._view and (ended or since > _FRAME_SECONDS):
            self._spoke = time.monotonic()
            self._view.show(self._done, self._notes)
        elif not self._view and self._shown and (ended or since > self._interval):
            self._spoke = time.monotonic()
            self._say()

    def _say(self) -> None:
        elapsed = time.monotonic() - self._started
        left = elapsed / max(1, self._done - self._first) * (self._total - self._done)
        parts = [f"{name} {value}" for name, value in self._notes.items()]
        words = ", ".join([f"{self._done}/{self._total}", *parts, f"{left:.0f} s left"])
        print(f"{self._title}: {words}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Leave the view as it stands."""
        if self._view:
            self._view.close(self._done, self._notes)


_FRAME_SECONDS = 0.25


class _View:
    """What a terminal shows. It has no thread of its own: workers are forked beside it."""

    def __init__(self, title: str, total: int, done: int, console: Console) -> None:
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            auto_refresh=False,
            speed_estimate_period=300,
            expand=True,
        )
        self._task = self._progress.add_task(title, total=total, completed=done)
        self._live = Live(
            self._progress,
            console=console,
            auto_refresh=False,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._live.start()

    def show(self, done: int, notes: dict[str, float | str]) -> None:
        self._progress.update(self._task, completed=done)
        self._live.update(Group(self._progress, *_row(notes)), refresh=True)

    def close(self, done: int, notes: dict[str, float | str]) -> None:
        self.show(done, notes)
        self._live.stop()


def _row(notes: dict[str, float | str]) -> list[Table]:
    """The notes side by side, names in grey above values; nothing where there are none."""
    if not notes:
        return []
    table = Table(box=None, expand=True, header_style="dim", padding=(0, 1))
    for name in notes:
        table.add_column(name)
    table.add_row(*map(str, notes.values()))
    return [table]
