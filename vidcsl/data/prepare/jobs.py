"""Work on many files: in parallel, with progress, and resumed from a record on disk.

A pool of processes does the work, so that a decoder that crashes or hangs costs one file and not
the job. The record is a text file with one JSON object per line, written as soon as a file is
finished: after a kill at any moment, the same call resumes after the last whole line.
"""

import json
import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from filelock import FileLock, Timeout
from pebble import ProcessExpired, ProcessPool

from vidcsl.errors import UserError, VideoError
from vidcsl.io import Bar

Result = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """One file's work.

    Attributes:
        name: unique; names the file in the record.
        state: changes whenever the work must be done again: the file's size and time, the settings.
        arguments: of the function.
    """

    name: str
    state: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcomes:
    """The results and failures of the tasks, in their order.

    Attributes:
        results: of the tasks that succeeded, by name.
        failures: the reasons of the others, by name.
        resumed: how many of both an earlier call had already finished.
    """

    results: dict[str, Result]
    failures: dict[str, str]
    resumed: int


def default_workers() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run(
    function: Callable[..., Result],
    tasks: Sequence[Task],
    *,
    record: Path,
    title: str,
    workers: int,
    timeout: float | None = None,
    intact: Callable[[Result], bool] = lambda _: True,
) -> Outcomes:
    """Call a function for each task that the record does not hold yet.

    Args:
        function: importable by name; its result must survive JSON. A `VideoError` is a failure of
            that task alone, and is recorded. Any other error ends the job.
        tasks: in the order of the outcomes.
        record: file that is appended to.
        title: of the progress bar.
        workers: processes.
        timeout: seconds for one task. One that takes longer, or whose process dies, has failed;
            that is not recorded, because the machine may be to blame, and tried again next time.
        intact: whether the files of a recorded result are still there.

    Raises:
        UserError: another call is using the same record, or the function raised it.
    """
    if workers < 1:
        raise UserError(f"{title}: at least one worker process is needed, not {workers}")
    record.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        try:
            stack.enter_context(FileLock(f"{record}.lock", timeout=0))
        except Timeout as error:
            raise UserError(f"another process is using {record}: wait for it to end") from error
        scratch = scratch_of(record)
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(exist_ok=True)
        stack.callback(shutil.rmtree, scratch, ignore_errors=True)
        file = stack.enter_context(record.open("a", encoding="utf-8"))
        if file.tell() and not record.read_bytes().endswith(b"\n"):
            file.write("\n")  # a kill has cut the last line
            file.flush()

        entries = {}
        known = read_record(record)
        for task in tasks:
            entry = known.get(task.name, {})
            if entry.get("state") == task.state and ("failure" in entry or intact(entry["result"])):
                entries[task.name] = entry
        resumed, failed = len(entries), 0
        left = [task for task in tasks if task.name not in entries]
        bar = Bar(title, total=len(tasks), done=resumed)
        for task, entry in _work(function, left, workers=workers, timeout=timeout):
            entries[task.name] = entry
            if "mishap" not in entry:
                file.write(json.dumps({"name": task.name, "state": task.state} | entry) + "\n")
                file.flush()
            failed += "result" not in entry
            bar.advance(**({"failed": failed} if failed else {}))
        bar.close()

    outcomes = Outcomes({}, {}, resumed)
    for name, entry in ((task.name, entries[task.name]) for task in tasks):
        if "result" in entry:
            outcomes.results[name] = entry["result"]
        else:
            outcomes.failures[name] = entry.get("failure") or entry["mishap"]
    return outcomes


def read_record(record: Path) -> dict[str, Result]:
    """The newest entry of each name. A line that a kill cut short counts for nothing."""
    entries = {}
    for line in record.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entry = json.loads(line)
            entries[entry["name"]] = entry
        except (ValueError, KeyError, TypeError):
            continue
    return entries


def scratch_of(record: Path) -> Path:
    """The folder of a job's unfinished files, beside the record; each call empties it."""
    return record.with_suffix(".partial")


@contextmanager
def replacing(path: Path, *, scratch: Path) -> Iterator[Path]:
    """As `vidcsl.io.replacing`, for a task: gives a path in `scratch` to write to.

    A process that outlives a killed call does no harm: its files have its own number in their
    names, and it moves only whole files to their places.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = scratch / f"{os.getpid()}-{path.name}"
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _work(
    function: Callable[..., Result], tasks: Sequence[Task], *, workers: int, timeout: float | None
) -> Iterator[tuple[Task, Result]]:
    """Each task with {"result": ...}, {"failure": reason} or {"mishap": reason}, as they finish."""
    if not tasks:
        return
    # Spawned: a decoder's threads, or an object store's, do not survive a fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPool(
        min(workers, len(tasks)),
        initializer=_follow_parent,
        initargs=[os.getpid()],
        context=context,
    ) as pool:
        # Ctrl-C reaches all processes. The workers leave it to this one from their first moment on:
        # the threads that are started here, and what these start, inherit the mask.
        resource_tracker.ensure_running()  # its start, in such a thread, would lift the mask
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            task_of: dict[Future, Task] = {
                pool.schedule(function, kwargs=dict(task.arguments), timeout=timeout): task
                for task in tasks
            }
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        finished: SimpleQueue[Future] = SimpleQueue()
        for future in task_of:
            future.add_done_callback(finished.put)
        try:
            for _ in tasks:
                done = finished.get()
                yield task_of[done], _entry(done, timeout)
        except BaseException:
            pool.stop()  # do not begin what is still waiting
            raise


def _entry(future: Future, timeout: float | None) -> Result:
    try:
        return {"result": future.result()}
    except VideoError as error:
        return {"failure": error.reason}
    except ProcessExpired as death:
        try:
            # The exit code of a process that a signal ended is its number, negative.
            cause = signal.Signals(-(death.exitcode or 0)).name
        except ValueError:
            cause = f"exit code {death.exitcode}"
        return {"mishap": f"the process died while working on it ({cause})"}
    except TimeoutError:
        if timeout is None:
            raise
        return {"mishap": f"not done within {timeout:g} s"}


def _follow_parent(parent: int) -> None:
    """In a worker: leave Ctrl-C, which reaches all processes, to the parent, and die with it."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)  # also out of a decoder that hangs

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=watch, daemon=True).start()
