"""What watches a training run from outside of the loop: memory, signals, hangs."""

import faulthandler
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import TextIO

import torch

from vidcsl.data.loader import STACKS_SIGNAL


def peak_memory_mib(device: torch.device) -> float:
    """Peak memory: on the GPU of this process, else of it and its largest worker."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    # Linux reports the peak of the largest child that has ended, not the sum of all children.
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    kibibytes = sum(resource.getrusage(each).ru_maxrss for each in who)
    return kibibytes / 2**10


def usage(device: torch.device) -> dict[str, float]:
    """`memory_mib`, the peak so far; `gpu_use`, how busy the GPU was in the last moments.

    `gpu_use` needs a GPU and nvidia-ml-py (`pip install 'vidcsl[gpu]'`), and is left out otherwise.
    """
    found = {"memory_mib": peak_memory_mib(device)}
    if device.type == "cuda":
        with suppress(ModuleNotFoundError, RuntimeError):
            found["gpu_use"] = torch.cuda.utilization(device) / 100
    return found


# ----------------------------------------------------------------------
# Signals.


class Interrupted(Exception):
    """SIGTERM or SIGINT was received; the state was saved before this was raised."""

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(f"stopped by {signal.Signals(number).name}; continue with --resume")


@contextmanager
def noted_signals() -> Iterator[list[int]]:
    """Collect SIGTERM and SIGINT in a list instead of dying, so that the current step can end."""
    received: list[int] = []

    # Only noted: saving in a handler could interrupt an optimiser step or an exchange half-way.
    def note(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        received.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# ----------------------------------------------------------------------
# Hangs.

EXIT_CODE = 124  # as `timeout` exits
_WORKERS_SECONDS = 1.0  # time for the workers to write their stacks


class Watchdog:
    """Dumps the stacks of this process and its workers if no step ends for a while.

    Every process of a run has its own watchdog and file: when one process hangs, the others hang in
    their next exchange with it. Stacks are dumped once per hang.

    A thread waits for the hang, asks the workers for their stacks and logs one line. It cannot run
    while a library holds the interpreter's lock, so faulthandler's native timer, which needs no
    lock, dumps the stacks of this process a little later if the thread did not.

    Args:
        seconds: without a step; 0: the watchdog does nothing.
        path: of the text file; it appears with the first hang.
        workers: returns the process ids of the loader's workers.
        ends_run: on a hang, end this process with `EXIT_CODE`, so that torchrun restarts it.
    """

    def __init__(
        self,
        seconds: float = 0.0,
        *,
        path: Path = Path("hang.txt"),
        workers: Callable[[], Sequence[int]] = tuple,
        ends_run: bool = False,
    ) -> None:
        self.seconds, self.path = seconds, path
        self._workers, self._ends_run = workers, ends_run
        self._stopped, self._dumped, self._last_step = threading.Event(), False, time.monotonic()
        self._file: TextIO | None = None
        self._thread = threading.Thread(target=self._watch, daemon=True, name="watchdog")

    def __enter__(self) -> "Watchdog":
        if self.seconds:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a")
            _ACTIVE.add(self)
            self.beat()
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stopped.set()
        if self._file:
            _ACTIVE.discard(self)
            faulthandler.cancel_dump_traceback_later()
            self._thread.join()
            self._file.close()
            if self.path.stat().st_size == 0:
                self.path.unlink()

    def beat(self) -> None:
        """Report that a step has ended."""
        self._last_step, self._dumped = time.monotonic(), False
        self.start_timer()

    def start_timer(self) -> None:
        """Start or restart the native timer."""
        if self._file:
            later = 1.5 * self.seconds + 2 * _WORKERS_SECONDS
            faulthandler.dump_traceback_later(later, file=self._file, exit=self._ends_run)

    def _watch(self) -> None:
        """Wait for a hang, and dump stacks; runs in the thread."""
        assert self._file
        while not self._stopped.wait(self.seconds / 10):
            if self._dumped or time.monotonic() - self._last_step <= self.seconds:
                continue
            self._dumped = True
            faulthandler.cancel_dump_traceback_later()
            print(f"no step ended for {self.seconds:g} s; process {os.getpid()}:", file=self._file)
            self._file.flush()
            faulthandler.dump_traceback(self._file)
            for pid in self._workers():
                print(f"\nworker {pid}:", file=self._file, flush=True)
                os.kill(pid, STACKS_SIGNAL)
                time.sleep(_WORKERS_SECONDS / 10)  # one after the other, in the same file
            outcome = "the run ends" if self._ends_run else "the run waits on"
            print(
                f"vidcsl: error: no step ended for {self.seconds:g} s (LOG.HANG_SECONDS), "
                f"{outcome}; the stacks of its processes are in {self.path}",
                file=sys.stderr,
                flush=True,
            )
            if self._ends_run:
                time.sleep(_WORKERS_SECONDS)
                os._exit(EXIT_CODE)


# faulthandler has one native timer per process, guarded by a lock. A forked worker would inherit
# the lock without the thread that releases it, and would wait forever as soon as it sets a timer of
# its own (`vidcsl.data.dataset.time_limit`). So the timer rests while a process forks.
_ACTIVE: set[Watchdog] = set()


def _stop_timer() -> None:
    if _ACTIVE:
        faulthandler.cancel_dump_traceback_later()


def _restart_timer() -> None:
    for watchdog in _ACTIVE:
        watchdog.start_timer()


os.register_at_fork(
    before=_stop_timer, after_in_parent=_restart_timer, after_in_child=_ACTIVE.clear
)
