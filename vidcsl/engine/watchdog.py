"""A run that hangs: what every process was doing is written down, and the run ends if asked."""

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TextIO

from vidcsl.data.watch import STACKS_SIGNAL

EXIT_CODE = 124  # that of `timeout`
_WORKERS_SECONDS = 1.0  # for them to answer


class Watchdog:
    """Writes the stacks of this process and its workers when no step ended for a while.

    Every process of a run has its own and writes its own file: when one hangs, the others do so in
    their next exchange. Stacks are written once a hang.

    Args:
        seconds: without a step; 0: it does nothing.
        path: of the text file; it appears with the first hang.
        workers: the ids of the loader's processes, asked at that time.
        ends_run: end this process then, with one line and `EXIT_CODE`, so that torchrun can start
            it anew.
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
        self._ended, self._reported = threading.Event(), False
        self._beat = time.monotonic()
        self._file: TextIO | None = None
        self._thread = threading.Thread(target=self._watch, daemon=True, name="watchdog")

    def __enter__(self) -> "Watchdog":
        if self.seconds:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a")
            _AWAKE.add(self)
            self.beat()
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        if self._file:
            _AWAKE.discard(self)
            faulthandler.cancel_dump_traceback_later()
            self._thread.join()
            self._file.close()
            if self.path.stat().st_size == 0:
                self.path.unlink()

    def beat(self) -> None:
        """A step has ended."""
        self._beat, self._reported = time.monotonic(), False
        self.arm()

    def arm(self) -> None:
        """Have the stacks written natively later than by the thread, should that not run.

        It cannot where a library holds the interpreter's lock.
        """
        if self._file:
            faulthandler.dump_traceback_later(
                1.5 * self.seconds + 2 * _WORKERS_SECONDS, file=self._file, exit=self._ends_run
            )

    def _watch(self) -> None:
        while not self._ended.wait(self.seconds / 10):
            if not self._reported and time.monotonic() - self._beat > self.seconds:
                self._reported = True
                self._report()

    def _report(self) -> None:
        assert self._file
        faulthandler.cancel_dump_traceback_later()
        print(f"no step ended for {self.seconds:g} s; process {os.getpid()}:", file=self._file)
        self._file.flush()
        faulthandler.dump_traceback(self._file)
        for pid in self._workers():
            print(f"\nworker {pid}:", file=self._file, flush=True)
            os.kill(pid, STACKS_SIGNAL)
            time.sleep(_WORKERS_SECONDS / 10)
        words = "the run ends" if self._ends_run else "the run waits on"
        print(
            f"vidcsl: error: no step ended for {self.seconds:g} s (LOG.HANG_SECONDS), {words}; "
            f"what its processes were doing is in {self.path}",
            file=sys.stderr,
            flush=True,
        )
        if self._ends_run:
            time.sleep(_WORKERS_SECONDS)
            os._exit(EXIT_CODE)


_AWAKE: set[Watchdog] = set()


def _disarm() -> None:
    if _AWAKE:
        faulthandler.cancel_dump_traceback_later()


def _rearm() -> None:
    for watchdog in _AWAKE:
        watchdog.arm()


# A forked process gets the native timer's lock without the thread that would release it, and would
# wait for it for ever when it sets a timer of its own (`data.watch.time_limit`).
os.register_at_fork(before=_disarm, after_in_parent=_rearm, after_in_child=_AWAKE.clear)
