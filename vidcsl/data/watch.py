"""Decoding that hangs or crashes: it ends, and the video that did it is named."""

import faulthandler
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from torch.utils.data import get_worker_info

from vidcsl.errors import VideoError

NOTHING = -1


class Desk:
    """What each worker process has in hand, for its parent to see after the worker's death."""

    def __init__(self, workers: int) -> None:
        self._held = multiprocessing.Array("q", [NOTHING] * max(1, workers), lock=False)

    @contextmanager
    def holding(self, video: int) -> Iterator[None]:
        """In a worker: it has this video in hand."""
        worker = get_worker_info()
        place = worker.id if worker else 0
        self._held[place] = video
        try:
            yield
        finally:  # not reached by a process that dies
            self._held[place] = NOTHING

    def held_by(self, worker: int) -> int:
        """The video that a worker had in hand; `NOTHING` where it had none."""
        return self._held[worker]

    def clear(self) -> None:
        """Forget everything."""
        for place in range(len(self._held)):
            self._held[place] = NOTHING


@contextmanager
def time_limit(seconds: float, path: str) -> Iterator[None]:
    """Raise VideoError in the block after `seconds`; 0: never.

    Where a library hangs in its own code and the alarm is not heard, a worker is ended after twice
    the time; the loader then goes on without the video.
    """
    if not seconds or threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(*_: object) -> None:
        raise VideoError(path, f"reading it took more than {seconds:g} s (DATA.TIMEOUT)")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    in_worker = get_worker_info() is not None
    if in_worker:
        # Counted by a native thread, which needs nothing that the library may hold.
        faulthandler.dump_traceback_later(2 * seconds, exit=True, file=_nowhere())
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if in_worker:
            faulthandler.cancel_dump_traceback_later()


STACKS_SIGNAL = signal.SIGUSR1


def tell_stacks(path: Path) -> None:
    """Have this process append its stacks to `path` whenever it gets `STACKS_SIGNAL`.

    That works while it hangs in a library's code, and while it holds the interpreter's lock.
    """
    _STACKS.append(path.open("a"))
    faulthandler.register(STACKS_SIGNAL, file=_STACKS[-1])


_STACKS: list[TextIO] = []  # open for as long as the process lives


def _nowhere() -> int:
    if not _NOWHERE:
        _NOWHERE.append(os.open(os.devnull, os.O_WRONLY))
    return _NOWHERE[0]


_NOWHERE: list[int] = []
