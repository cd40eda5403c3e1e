"""What watches a training run from outside the loop: memory, signals, hangs, trackers.

Each tracker keeps its run id in the run's folder, so that a resumed run continues in the same
place. Servers and accounts are configured as the libraries document it (`WANDB_MODE`,
`MLFLOW_TRACKING_URI`).
"""

import faulthandler
import importlib
import json
import os
import re
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Protocol, TextIO

import torch

from vidcsl.data.loader import STACKS_SIGNAL
from vidcsl.errors import UserError
from vidcsl.io import write_atomically
from vidcsl.run_folder import RunFolder


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
    """Collect SIGTERM and SIGINT in a list instead of dying, so that the current step can end.

    In a thread other than the main one nothing is collected: signals are the main thread's.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

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


class Tracker(Protocol):
    """Receives the numbers of a run while it runs."""

    def log(self, values: Mapping[str, float], *, step: int) -> None:
        """Numbers at a step."""

    def close(self) -> None:
        """Flush; the run has ended."""


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker needs to know of a run.

    Attributes:
        name: of the run.
        project: groups several runs: W&B's project, MLflow's experiment.
        folder: of the run.
        config: options by dotted key.
    """

    name: str
    project: str
    folder: RunFolder
    config: Mapping[str, Any]


class TensorBoard:
    """Event files in `tensorboard/` of the run's folder."""

    def __init__(self, run: TrackedRun) -> None:
        from torch.utils.tensorboard import SummaryWriter  # slow to import

        self._writer: Any = SummaryWriter(str(run.folder.tensorboard))

    def log(self, values: Mapping[str, float], *, step: int) -> None:
        """Numbers at a step."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush the event file."""
        self._writer.close()


class WandB:
    """Weights & Biases; `WANDB_MODE=offline` keeps everything in the run's folder."""

    def __init__(self, run: TrackedRun) -> None:
        wandb = _import_extra("wandb", extra="wandb")
        self._run: Any = wandb.init(
            project=run.project,
            name=run.name,
            dir=str(run.folder.path),
            config=dict(run.config),
            id=_run_ids(run.folder).get("wandb"),
            resume="allow",
        )
        _keep_run_id(run.folder, "wandb", self._run.id)

    def log(self, values: Mapping[str, float], *, step: int) -> None:
        """Numbers at a step."""
        # As a value: wandb's own step must not decrease, and a resumed run may repeat steps.
        self._run.log({**values, "step": step})

    def close(self) -> None:
        """Upload what is left, and end the run."""
        self._run.finish()


class MLflow:
    """MLflow; without `MLFLOW_TRACKING_URI`, in MLflow's default store."""

    def __init__(self, run: TrackedRun) -> None:
        self._client: Any = _import_extra("mlflow.tracking", extra="mlflow").MlflowClient()
        self._id = _run_ids(run.folder).get("mlflow", "")
        if not self._id:
            found = self._client.get_experiment_by_name(run.project)
            experiment = (
                found.experiment_id if found else self._client.create_experiment(run.project)
            )
            self._id = str(self._client.create_run(experiment, run_name=run.name).info.run_id)
            for key, value in run.config.items():
                self._client.log_param(self._id, key, value)
            _keep_run_id(run.folder, "mlflow", self._id)

    def log(self, values: Mapping[str, float], *, step: int) -> None:
        """Numbers at a step."""
        for name, value in values.items():
            plain = re.sub(r"[^\w\-. :/]", "_", name)  # MLflow refuses names such as R@1
            self._client.log_metric(self._id, plain, value, step=step)

    def close(self) -> None:
        """Mark the run as finished."""
        self._client.set_terminated(self._id)


TRACKERS: dict[str, Callable[[TrackedRun], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "mlflow": MLflow,
}


def open_trackers(names: Sequence[str], run: TrackedRun) -> list[Tracker]:
    """The trackers with these names, in TRACKERS.

    Raises:
        UserError: a library is missing, or a tracker cannot be reached.
    """
    opened: list[Tracker] = []
    for name in names:
        try:
            opened.append(TRACKERS[name](run))
        except UserError:
            raise
        except Exception as error:  # each library has errors of its own
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(f"LOG.TRACKERS: {name} cannot start: {reason}") from error
    return opened


def _import_extra(module: str, *, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise UserError(
            f"LOG.TRACKERS: {extra} is missing: pip install 'vidcsl[{extra}]'"
        ) from None


def _run_ids(folder: RunFolder) -> dict[str, str]:
    """The ids that trackers gave this run, by tracker."""
    path = folder.path / "trackers.json"
    ids: dict[str, str] = json.loads(path.read_text()) if path.exists() else {}
    return ids


def _keep_run_id(folder: RunFolder, tracker: str, run_id: str) -> None:
    text = json.dumps({**_run_ids(folder), tracker: run_id})
    write_atomically(folder.path / "trackers.json", text + "\n")
