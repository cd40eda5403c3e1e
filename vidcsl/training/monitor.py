"""What watches a training run: trackers, memory, signals, the watchdog."""

import faulthandler
import json
import os
import re
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Protocol, TextIO

import torch

from vidcsl.data.dataset import STACKS_SIGNAL
from vidcsl.errors import UserError
from vidcsl.io import write_atomically
from vidcsl.run_folder import RunFolder

# ----------------------------------------------------------------------
# What a process uses of the machine.


def peak_memory_mib(device: torch.device) -> float:
    """Most memory held so far: on the GPU by this process, else by it and its largest worker."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    kibibytes = sum(resource.getrusage(each).ru_maxrss for each in who)
    return kibibytes / 2**10


def usage(device: torch.device) -> dict[str, float]:
    """Peak memory, and the share of the last moments in which the GPU worked, where it tells.

    It tells where there is a GPU and nvidia-ml-py (`pip install 'vidcsl[gpu]'`).
    """
    memory = {"memory_mib": peak_memory_mib(device)}
    if device.type != "cuda":
        return memory
    try:
        return {**memory, "gpu_use": torch.cuda.utilization(device) / 100}
    except (ModuleNotFoundError, RuntimeError):
        return memory


# ----------------------------------------------------------------------
# Signals that ask a training to stop, noted instead of obeyed at once.


class Interrupted(Exception):
    """SIGTERM or SIGINT came; the state was saved before this was raised."""

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(f"stopped by {signal.Signals(number).name}; continue with --resume")


@contextmanager
def noted_signals() -> Iterator[list[int]]:
    """Collect SIGTERM and SIGINT instead of dying, so that the step under way can end."""
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        received.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# ----------------------------------------------------------------------
# A run that hangs: what every process was doing is written down, and the run ends if asked.

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


# ----------------------------------------------------------------------
# Where the numbers of a run go besides its log: trackers behind one small protocol.
#
# Each keeps its run's id in the run's folder, so that a resumed run goes on in the same place.
# Servers and accounts are found as the libraries find them (`WANDB_MODE`, `MLFLOW_TRACKING_URI`).


class Tracker(Protocol):
    """What is told of a run while it runs."""

    def log(self, values: Mapping[str, float], *, step: int) -> None:
        """Numbers at a step."""

    def close(self) -> None:
        """Write what is still held back."""


@dataclass(frozen=True)
class Run:
    """What a tracker is told at the start.

    Attributes:
        name: of the run.
        project: of several runs: W&B's project, MLflow's experiment.
        folder: of the run.
        config: options by dotted key.
    """

    name: str
    project: str
    folder: RunFolder
    config: Mapping[str, Any]


class TensorBoard:
    """Event files in `tensorboard/` of the run's folder."""

    def __init__(self, run: Run) -> None:
        from torch.utils.tensorboard import SummaryWriter  # slow to import

        self._writer: Any = SummaryWriter(str(run.folder.tensorboard))

    def log(self, values: Mapping[str, float], *, step: int) -> None:
        """Numbers at a step."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is still held back."""
        self._writer.close()


class WandB:
    """Weights & Biases; `WANDB_MODE=offline` keeps everything in the run's folder."""

    def __init__(self, run: Run) -> None:
        wandb = _import("wandb", extra="wandb")
        ids = _Ids(run.folder.path)
        self._run: Any = wandb.init(
            project=run.project,
            name=run.name,
            dir=str(run.folder.path),
            config=dict(run.config),
            id=ids.get("wandb"),
            resume="allow",
        )
        ids.keep("wandb", self._run.id)

    def log(self, values: Mapping[str, float], *, step: int) -> None:
        """Numbers at a step."""
        # Not wandb's own step, which refuses to go back: a resumed run may repeat steps.
        self._run.log({**values, "step": step})

    def close(self) -> None:
        """Write what is still held back."""
        self._run.finish()


class MLflow:
    """MLflow; without `MLFLOW_TRACKING_URI`, where MLflow puts it."""

    def __init__(self, run: Run) -> None:
        tracking = _import("mlflow.tracking", extra="mlflow")
        self._client: Any = tracking.MlflowClient()
        ids = _Ids(run.folder.path)
        self._id: str = ids.get("mlflow") or self._create(run)
        ids.keep("mlflow", self._id)

    def _create(self, run: Run) -> str:
        experiment = self._client.get_experiment_by_name(run.project)
        number = (
            experiment.experiment_id if experiment else self._client.create_experiment(run.project)
        )
        made = self._client.create_run(number, run_name=run.name)
        for key, value in run.config.items():
            self._client.log_param(made.info.run_id, key, value)
        return str(made.info.run_id)

    def log(self, values: Mapping[str, float], *, step: int) -> None:
        """Numbers at a step."""
        for name, value in values.items():
            # MLflow refuses a name with other characters, such as R@1.
            plain = re.sub(r"[^\w\-. :/]", "_", name)
            self._client.log_metric(self._id, plain, value, step=step)

    def close(self) -> None:
        """Tell that the run has ended."""
        self._client.set_terminated(self._id)


TRACKERS: dict[str, Callable[[Run], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "mlflow": MLflow,
}


def open_trackers(names: Sequence[str], run: Run) -> list[Tracker]:
    """The trackers by name.

    Raises:
        UserError: a library is missing, or a tracker cannot be reached.
    """
    return [_open(name, run) for name in names]


def _open(name: str, run: Run) -> Tracker:
    try:
        return TRACKERS[name](run)
    except UserError:
        raise
    except Exception as error:  # each library has errors of its own
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"LOG.TRACKERS: {name} cannot start: {reason}") from error


def _import(module: str, *, extra: str) -> Any:
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError:
        raise UserError(
            f"LOG.TRACKERS: {extra} is missing: pip install 'vidcsl[{extra}]'"
        ) from None


class _Ids:
    """Ids of a run with its trackers, by their names, in `trackers.json`."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "trackers.json"

    def _read(self) -> dict[str, str]:
        return json.loads(self._path.read_text()) if self._path.exists() else {}

    def get(self, name: str) -> str | None:
        return self._read().get(name)

    def keep(self, name: str, value: str) -> None:
        write_atomically(self._path, json.dumps({**self._read(), name: value}) + "\n")
