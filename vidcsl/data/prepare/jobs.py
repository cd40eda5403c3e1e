"""Work on many files: in parallel, with progress, and resumed from a record on disk.

Each file is worked on in a process of its own pool, so that a decoder that crashes or hangs costs
that file and not the job. The record is a text file with one JSON object a line, written as soon as
a file is finished: after a kill at any moment the same call goes on behind the last whole line.
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
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TextIO

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
        state: changes whenever the work must be done anew: the file's size and time, the settings.
        arguments: of the function.
    """

    name: str
    state: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcomes:
    """What came of the tasks, each in their order.

    Attributes:
        results: of the tasks that went well, by name.
        failures: why the others did not, by name.
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
            that task alone, and an answer that is recorded. Any other error ends the job.
        tasks: in the order of the outcomes.
        record: file that is appended to.
        title: of the progress bar.
        workers: processes.
        timeout: seconds for one task. One that takes longer, or whose process dies, has failed;
            that is not recorded, as the machine may be to blame, and tried again next time.
        intact: whether what a recorded result stands for is still there.

    Raises:
        UserError: another call is at work on the same record, or the function raised it.
    """
    if workers < 1:
        raise UserError(f"{title}: at least one worker process is needed, not {workers}")
    with _locked(record), _appending(record) as file, _emptied(scratch_of(record)):
        known = _read(record)
        entries = {
            task.name: known[task.name]
            for task in tasks
            if _holds(known.get(task.name, {}), task, intact)
        }
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
    return _outcomes({task.name: entries[task.name] for task in tasks}, resumed=resumed)


def _outcomes(entries: Mapping[str, Result], *, resumed: int) -> Outcomes:
    wrong = {name: entry for name, entry in entries.items() if "result" not in entry}
    return Outcomes(
        results={name: e["result"] for name, e in entries.items() if "result" in e},
        failures={name: e.get("failure") or e["mishap"] for name, e in wrong.items()},
        resumed=resumed,
    )


def scratch_of(record: Path) -> Path:
    """The folder, beside the record, where a job's unfinished files lie; emptied by each call."""
    return record.with_suffix(".partial")


@contextmanager
def replacing(path: Path, *, scratch: Path) -> Iterator[Path]:
    """As `lists.replacing`, for a task: gives a path in `scratch` to write to.

    A process that was left behind by a killed call does no harm: it has files of its own, and what
    it moves to their places is whole.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = scratch / f"{os.getpid()}-{path.name}"
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _holds(entry: Result, task: Task, intact: Callable[[Result], bool]) -> bool:
    if entry.get("state") != task.state:
        return False
    return "failure" in entry or intact(entry["result"])


def _work(
    function: Callable[..., Result], tasks: Sequence[Task], *, workers: int, timeout: float | None
) -> Iterator[tuple[Task, Result]]:
    """Each task with {"result": ...}, {"failure": reason} or {"mishap": reason}, as they finish."""
    if not tasks:
        return
    # Spawned: a decoder's threads, or an object store's, do not survive a fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPool(
        min(workers, len(tasks)), initializer=_follow, initargs=[os.getpid()], context=context
    ) as pool:
        task_of: dict[Future, Task] = {
            pool.schedule(function, kwargs=dict(task.arguments), timeout=timeout): task
            for task in tasks
        }
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
        return {"mishap": f"the process died while at work on it ({_cause(death.exitcode)})"}
    except TimeoutError:
        if timeout is None:
            raise
        return {"mishap": f"not done within {timeout:g} s"}


def _cause(exitcode: int | None) -> str:
    try:
        return signal.Signals(-(exitcode or 0)).name
    except ValueError:
        return f"exit code {exitcode}"


def _follow(parent: int) -> None:
    """In a worker: leave Ctrl-C, which reaches all processes, to the parent, and die with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_die_with, args=(parent,), daemon=True).start()


def _die_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)  # also out of a decoder that hangs


def _read(record: Path) -> dict[str, Result]:
    """The newest entry of each name. A line that a kill cut short counts for nothing."""
    entries = {}
    for line in record.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entry = json.loads(line)
            entries[entry["name"]] = entry
        except (ValueError, KeyError, TypeError):
            continue
    return entries


@contextmanager
def _appending(record: Path) -> Iterator[TextIO]:
    """The record, open behind its last line, which may lack its end."""
    with record.open("a", encoding="utf-8") as file:
        if file.tell() and not record.read_bytes().endswith(b"\n"):
            file.write("\n")
            file.flush()
        yield file


@contextmanager
def _emptied(scratch: Path) -> Iterator[None]:
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(exist_ok=True)
    try:
        yield
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def _locked(record: Path) -> Iterator[None]:
    record.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(f"{record}.lock", timeout=0):
            yield
    except Timeout as error:
        raise UserError(f"another process is at work on {record}: wait for it to end") from error
