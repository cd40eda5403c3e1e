"""Files and the terminal: atomic writes, locks, arrays, the log and the progress bar.

Importing this does not import torch: the commands that prepare videos or write a report use it.
"""

import ctypes
import fcntl
import hashlib
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, TypeVar
from zipfile import BadZipFile

import numpy as np
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

from vidcsl.errors import UserError

if TYPE_CHECKING:
    import torch

    from vidcsl.training.monitor import Tracker

Item = TypeVar("Item")

# ----------------------------------------------------------------------
# Files.


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a hidden path to write to, which replaces `path` once the block succeeds."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_atomically(path: Path, text: str) -> None:
    """Write beside, then rename: a reader or a crash never sees half a file."""
    with replacing(path) as partial:
        # Whatever the locale; a name that is no text (a lone byte) is shown and stops no run.
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")


def file_state(path: Path) -> str:
    """Size and modification time as text; of a folder, those of all files in it.

    Raises:
        OSError: the path does not exist or cannot be read.
    """
    state = path.stat()
    if not path.is_dir():
        return f"{state.st_size} {state.st_mtime_ns}"
    # Rewriting a file in place changes nothing of the folder itself.
    files = sorted((file.name, file_state(file)) for file in path.iterdir() if file.is_file())
    return hashlib.sha256(repr(files).encode()).hexdigest()


def is_hidden(path: str | Path) -> bool:
    """Whether a relative path is or lies in what systems leave behind: .git, ._x.mp4, __MACOSX."""
    return any(part.startswith(".") or part == "__MACOSX" for part in Path(path).parts)


def expanded_path(text: str) -> str:
    """A path, or several after `:`, `,` or `+`, with `~`, `$NAME` and `${NAME}` put in.

    Raises:
        UserError: a variable in braces is not set; a folder would be called after it.
    """
    text = os.path.expandvars(text)
    if lost := re.search(r"\$\{(\w+)\}", text):
        raise UserError(f"the variable {lost[1]} is not set")
    return re.sub(r"(^|[:,+]\s*)~(?=/|$)", lambda match: match[1] + os.path.expanduser("~"), text)


def acquire_lock(file: TextIO, *, keep_trying: Callable[[], bool]) -> bool:
    """Lock a file for as long as this process lives; False if another process keeps the lock.

    A lock, unlike a marker file, cannot outlive a process that was killed.

    Raises:
        OSError: the file system has no locks.
    """
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not keep_trying():
                return False
            time.sleep(0.2)
        else:
            return True


_DAMAGED = (OSError, ValueError, KeyError, EOFError, BadZipFile)  # what NumPy raises


def save_arrays(path: Path, arrays: Mapping[str, Any], *, compressed: bool = False) -> None:
    """Write tensors, numbers and strings to an `.npz` file, atomically."""
    plain: dict[str, Any] = {name: np.asarray(array) for name, array in arrays.items()}
    save: Callable[..., None] = np.savez_compressed if compressed else np.savez
    with replacing(path) as partial, partial.open("wb") as file:
        save(file, **plain)


def load_arrays(path: Path, names: Sequence[str]) -> "list[torch.Tensor]":
    """What `save_arrays` wrote under these names.

    Raises:
        UserError: the file is damaged.
    """
    import torch

    try:
        with np.load(path, allow_pickle=False) as stored:
            return [torch.from_numpy(stored[name]) for name in names]
    except _DAMAGED as error:
        raise UserError(f"{path} is damaged ({error}); remove it") from error


def stored_key(path: Path) -> str:
    """The string stored as `key`, which says what the file was computed from; "" if unreadable."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            return str(stored["key"])
    except _DAMAGED:
        return ""


def return_freed_memory(device: "torch.device") -> None:
    """Return freed memory to the system, if `device` is the CPU and its C library can.

    glibc before 2.38 often does not reuse freed aligned memory while small live objects lie
    between: long loops over large tensors grow without this. It costs some page faults.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if device.type == "cpu" else None
    if trim:
        trim(0)


# ----------------------------------------------------------------------
# The log and the terminal.


def log_message(text: str) -> None:
    """One line on stderr, from the first process only."""
    if os.environ.get("RANK", "0") == "0":
        print(f"vidcsl: {text}", file=sys.stderr, flush=True)


class Log:
    """Appends one JSON object per line, and forwards numbers to trackers.

    Args:
        path: log.jsonl; None: nothing is written (processes other than the main one).
        trackers: receive the numbers, too; one that fails is reported and dropped, and the run
            continues.
    """

    def __init__(self, path: Path | None, trackers: Sequence["Tracker"] = ()) -> None:
        self._file: TextIO | None = path.open("a") if path else None
        self._trackers = list(trackers)

    def write(self, kind: str, **values: Any) -> None:
        """One line, which is on disk when this returns."""
        if self._file:
            self._file.write(json.dumps({"kind": kind, **values}) + "\n")
            self._file.flush()
        numbers = {f"{kind}/{k}": v for k, v in values.items() if isinstance(v, float)}
        if numbers:
            self._call_trackers("log", numbers, step=values.get("step", 0))

    def close(self) -> None:
        """Flush and close."""
        if self._file:
            self._file.close()
        self._call_trackers("close")

    def _call_trackers(self, method: str, *arguments: Any, **options: Any) -> None:
        for tracker in list(self._trackers):
            try:
                getattr(tracker, method)(*arguments, **options)
            except Exception as error:  # any kind: a server that is down must not stop training
                self._trackers.remove(tracker)
                name, reason = type(tracker).__name__, (str(error).splitlines() or [""])[0]
                log_message(f"{name} failed and is no longer used: {reason}")


class Meter:
    """Measures clips per second, and the fraction of the time spent waiting for data."""

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
        """`clips_per_second` and `data_wait`, a fraction, since the last call."""
        now = time.perf_counter()
        elapsed = max(now - self._started, 1e-9)
        rates = {"clips_per_second": self._clips / elapsed, "data_wait": self._waited / elapsed}
        self._started, self._waited, self._clips = now, 0.0, 0
        return rates


_FRAME_SECONDS = 0.25  # between two refreshes of a terminal


def _rounded(seconds: float) -> str:
    """A time as one says it: "40 s", "12 min", "3 h 5 min"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


class Bar:
    """A progress bar on a terminal; elsewhere a plain line every `interval` seconds.

    On a terminal the newest notes (loss, clips/s, ...) stand in a row below the bar.
    """

    def __init__(
        self,
        title: str,
        *,
        total: int,
        done: int = 0,
        unit: str = "videos",
        shown: bool = True,
        interval: float = 30.0,
        console: Console | None = None,
    ) -> None:
        self._title, self._total, self._done, self._first = title, total, done, done
        self._unit = unit
        self._shown, self._interval = shown, interval
        self._notes: dict[str, float | str] = {}
        self._started = self._refreshed = time.monotonic()
        self._live: Live | None = None
        console = console or Console(stderr=True)
        if shown and console.is_terminal:
            # No refresh thread: the loader forks workers, and a fork must not meet a held lock.
            options: dict[str, Any] = {"console": console, "auto_refresh": False}
            self._progress = Progress(
                TextColumn("[bold]{task.description}"),
                BarColumn(bar_width=None),
                MofNCompleteColumn(),
                TextColumn(unit),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                speed_estimate_period=300,
                expand=True,
                **options,
            )
            self._task = self._progress.add_task(title, total=total, completed=done)
            self._live = Live(
                self._progress, redirect_stdout=False, redirect_stderr=False, **options
            )
            self._live.start()

    def advance(self, count: int = 1, **notes: float | str) -> None:
        """`count` more are done; the newest `notes` are shown beside the bar."""
        self._done += count
        self._total = max(self._total, self._done)  # one process may have a few more than others
        self._notes.update(notes)
        now, ended = time.monotonic(), self._done >= self._total
        wait = _FRAME_SECONDS if self._live else self._interval
        if not self._shown or not (ended or now - self._refreshed > wait):
            return
        self._refreshed = now
        if self._live:
            self._refresh(self._live)
            return
        left = (now - self._started) / max(1, self._done - self._first) * (self._total - self._done)
        parts = [f"{name} {value}" for name, value in self._notes.items()]
        done = f"{self._done}/{self._total} {self._unit}"
        line = ", ".join([done, *parts, f"{_rounded(left)} left"])
        print(f"{self._title}: {line}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self._live:
            self._refresh(self._live)
            self._live.stop()

    def _refresh(self, live: Live) -> None:
        self._progress.update(self._task, completed=self._done)
        shown: list[Any] = [self._progress]
        if self._notes:
            table = Table(box=None, expand=True, header_style="dim", padding=(0, 1))
            for name in self._notes:
                table.add_column(name)
            table.add_row(*map(str, self._notes.values()))
            shown.append(table)
        live.update(Group(*shown), refresh=True)
