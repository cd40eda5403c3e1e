"""Run the missing runs of a study in parallel, and estimate the hours they take."""

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from types import FrameType

import torch
from fvcore.common.config import CfgNode

from vidcsl.config import dump_config, overridden
from vidcsl.data.lists import Row, VideoList, write_list
from vidcsl.distributed import DistributedContext
from vidcsl.errors import PassingError, UserError
from vidcsl.io import acquire_lock, log_message, write_atomically
from vidcsl.launch import Resources, TorchRun
from vidcsl.pipelines.data import build_lists
from vidcsl.pipelines.training import check
from vidcsl.report.summary import Tree, duration, number
from vidcsl.run_folder import RunFolder, digest
from vidcsl.studies.plan import StudyRun

FINISHED = "finished.json"
LOG = "study.log"
_LOCK = ".lock"


def is_finished(run: StudyRun) -> bool:
    """Whether the run was completed with the config that it has now."""
    try:
        marker = json.loads((run.folder / FINISHED).read_text())
    except (OSError, ValueError):
        return False
    return bool(marker.get("config") == config_digest(run))


def state(run: StudyRun) -> str:
    """ "finished", "started" or "missing"."""
    if is_finished(run):
        return "finished"
    return "started" if (run.folder / "config.yaml").exists() else "missing"


def check_runs(runs: Sequence[StudyRun]) -> None:
    """Find mistakes before hours of work, and render synthetic videos once, not in each run.

    Raises:
        UserError: a config cannot be built, or a list or video is missing.
    """
    alone = DistributedContext(rank=0, size=1, device=torch.device("cpu"))
    seen = set()
    for run in runs:
        check(run.cfg)
        data = digest({"data": str(run.cfg.DATA), "synthetic": str(run.cfg.SYNTHETIC)})
        if data not in seen:
            build_lists(run.cfg, alone)
            seen.add(data)


@dataclass
class Runner:
    """Completes runs, several at a time.

    Each run is a process of its own (`vidcsl train --resume`), so that a crash ends that run alone.
    A lock in its folder, which the process inherits, keeps two runners from executing the same run,
    and disappears with the process however it ends. Signals are passed on: running processes save
    their state and stop; the next call resumes them.

    Args:
        jobs: number of runs at a time.
        gpus: ids, one for each job; empty: the processes see the GPUs that this one sees.
        processes: per run; torchrun starts them where there are several.
        patient: wait for runs that another process is executing; else skip them.
    """

    jobs: int = 1
    gpus: Sequence[str] = ()
    processes: int = 1
    patient: bool = False
    _children: set[subprocess.Popen[bytes]] = field(default_factory=set)
    _signal: int = 0  # number of the signal that asked to stop

    def run(self, runs: Sequence[StudyRun]) -> None:
        """StudyRun those that are not finished.

        Raises:
            UserError: some failed; the others were still completed.
        """
        wanted = [run for run in runs if not is_finished(run)]
        if not wanted:
            return
        slots: queue.SimpleQueue[str] = queue.SimpleQueue()
        for job in range(self.jobs):
            slots.put(self.gpus[job % len(self.gpus)] if self.gpus else "")
        with self._signals(), ThreadPoolExecutor(self.jobs) as pool:
            codes = list(pool.map(lambda run: self._in_slot(run, slots), wanted))
        if self._signal:
            raise SystemExit(128 + self._signal)
        failed = [run for run, code in zip(wanted, codes, strict=True) if code]
        if failed:
            names = ", ".join(run.title for run in failed)
            # A run that a signal ended may succeed another time: memory was short, a node was lost.
            kind = PassingError if any(code < 0 for code in codes) else UserError
            raise kind(f"failed: {names}; see {failed[0].folder / LOG}; call again to resume")

    def _in_slot(self, run: StudyRun, slots: queue.SimpleQueue[str]) -> int:
        gpu = slots.get()
        try:
            return 0 if self._signal else self._execute(run, gpu)
        finally:
            slots.put(gpu)

    def _execute(self, run: StudyRun, gpu: str) -> int:
        """The exit code; 0 also if another runner is executing the run or has finished it."""
        run.folder.mkdir(parents=True, exist_ok=True)
        with (run.folder / _LOCK).open("w") as lock, (run.folder / LOG).open("ab") as log:
            if not acquire_lock(lock, keep_trying=lambda: self.patient and not self._signal):
                log_message(f"{run.title}: another process is running it")
                return 0
            if is_finished(run):
                return 0
            log_message(f"{run.title}: starts")
            started = time.monotonic()
            child = subprocess.Popen(
                command(run, processes=self.processes),
                stdout=log,
                stderr=log,
                env=environment(gpu, jobs=self.jobs),
                pass_fds=[lock.fileno()],
                start_new_session=True,  # a terminal's Ctrl-C arrives by way of this process
            )
            self._children.add(child)
            # `stop` may have run just before it could know of this child.
            if self._signal:
                child.terminate()
            code = child.wait()
            self._children.discard(child)
            spent = duration(time.monotonic() - started)
            if code == 0:
                write_atomically(
                    run.folder / FINISHED, json.dumps({"config": config_digest(run)}) + "\n"
                )
            log_message(
                f"{run.title}: {'finished' if code == 0 else f'ended with {code}'} after {spent}"
            )
            return code

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Pass interrupts on to the running processes."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def stop(number: int, _frame: FrameType | None) -> None:
            self._signal = number
            for child in list(self._children):
                child.terminate()

        numbers = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, stop) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def command(run: StudyRun, *, processes: int = 1) -> list[str]:
    """The command line of a run; writes its config into the run's folder."""
    path = run.folder / "study.yaml"
    write_atomically(path, dump_config(run.cfg))
    what = ["evaluate", "--weights", run.cfg.MODEL.WEIGHTS] if run.external else ["train"]
    resume = [] if run.external else ["--resume"]
    words = (*what, "--cfg", str(path), *resume)
    if processes > 1:
        return TorchRun(words, processes, Resources().restarts).command()
    return [sys.executable, "-m", "vidcsl.cli", *words]


def visible_gpus() -> list[str]:
    """Ids of the GPUs that this process may use."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named:
        return [each.strip() for each in named.split(",")]
    return [str(index) for index in range(torch.cuda.device_count())]


# Set where torchrun started this process: with them a run would join that group of processes.
_TORCHRUN_VARIABLES = (
    "RANK",
    "LOCAL_",
    "WORLD_SIZE",
    "GROUP_",
    "ROLE_",
    "MASTER_",
    "TORCHELASTIC_",
)


def environment(gpu: str = "", *, jobs: int = 1) -> dict[str, str]:
    """A run's environment: its GPU and, unless OMP_NUM_THREADS is set, its part of the cores.

    More threads than cores would wait for each other.
    """
    kept = {k: value for k, value in os.environ.items() if not k.startswith(_TORCHRUN_VARIABLES)}
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs))}
    return threads | kept | ({"CUDA_VISIBLE_DEVICES": gpu} if gpu else {})


def config_digest(run: StudyRun) -> str:
    """A digest of the run's config, by which a finished run is recognised."""
    return digest({"config": dump_config(run.cfg)})


# ----------------------------------------------------------------------
# Estimated cost: the time of finished runs, or of a trial on a few videos.

_STEPS = 4  # of a trial, the first of which is slow


@dataclass(frozen=True)
class Estimate:
    """Expected time of one run.

    Attributes:
        hours: of one process.
        source: "recorded" from finished runs of the same arm and setting, or "measured" in a trial.
    """

    hours: float
    source: str


def estimate(runs: Sequence[StudyRun], *, jobs: int = 1) -> dict[tuple[str, str], Estimate]:
    """Estimates by setting and arm; trials use the threads that each of `jobs` runs will have.

    Raises:
        UserError: a trial failed.
    """
    found: dict[tuple[str, str], Estimate] = {}
    for run in runs:
        kind = (run.setting, run.arm)
        if kind in found:
            continue
        done = [each for each in runs if (each.setting, each.arm) == kind and is_finished(each)]
        recorded = [total_hours(RunFolder(each.folder).read_results()) for each in done]
        if recorded:
            found[kind] = Estimate(fmean(recorded), "recorded")
        else:
            found[kind] = Estimate(_measured(run, jobs=jobs), "measured")
    return found


def total_hours(results: Tree) -> float:
    """Hours of all stages of a run."""
    seconds = results.get("cost", {}).get("seconds", {})
    return sum(value for each in seconds.values() if (value := number(each)) is not None) / 3600


def _measured(run: StudyRun, *, jobs: int) -> float:
    """Hours, from a trial of a few steps and test videos, each stage scaled to the whole run.

    An attack skips clips that are fooled, and an untrained model is fooled early: robust models
    take longer, up to as many times as there are budgets.
    """
    alone = DistributedContext(rank=0, size=1, device=torch.device("cpu"))
    train, test = build_lists(run.cfg, alone)
    with tempfile.TemporaryDirectory() as folder:
        cfg = trial_config(run.cfg, train, test, Path(folder))
        path = Path(folder) / "trial.yaml"
        path.write_text(dump_config(cfg))
        command = [sys.executable, "-m", "vidcsl.cli", "train", "--cfg", str(path)]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env=environment(jobs=jobs)
        )
        if done.returncode:
            last = done.stderr.strip().splitlines()[-1:] or ["no message"]
            raise UserError(f"the trial of {run.title} failed: {last[0]}")
        results = RunFolder(cfg.OUTPUT_DIR).read_results()
    seconds = scaled(
        results["cost"]["seconds"],
        steps=run.cfg.TRAIN.EPOCHS * (len(train) // run.cfg.TRAIN.BATCH) / _STEPS,
        rounds=run.cfg.FALSE_NEGATIVES.ROUNDS - 1,
        train=len(train) / results["data"]["train_videos"],
        test=len(test) / results["data"].get("test_videos", 1) if test else 0.0,
    )
    return sum(seconds.values()) / 3600


def trial_config(cfg: CfgNode, train: VideoList, test: VideoList | None, folder: Path) -> CfgNode:
    """The run's config on so few videos that training takes a few steps."""
    batch, root = cfg.TRAIN.BATCH, cfg.DATA.ROOT
    few = write_few(train, _STEPS * batch, folder / "train.csv", root)
    few_test = (
        write_few(test, cfg.EVALUATE.BATCH, folder / "test.csv", root) if test is not None else ""
    )
    values = {
        "SYNTHETIC.ENABLED": False,
        "DATA.TRAIN_LIST": few,
        "DATA.TEST_LIST": few_test,
        "TRAIN.EPOCHS": 1,
        "TRAIN.WARMUP_EPOCHS": 0.0,
        "TRAIN.BATCH": min(batch, len(train) // _STEPS or 1),
        "FALSE_NEGATIVES.CLUSTERS": [2],
        "FALSE_NEGATIVES.ROUNDS": min(2, cfg.FALSE_NEGATIVES.ROUNDS),
        "FALSE_NEGATIVES.TUTOR": "",  # a teacher's features are of other videos than these few
        "EVALUATE.KNN_K": 1,
        "EVALUATE.SPLITS": [],
        "EVALUATE.TRANSFER": [],
        "EVALUATE.LOW_SHOT": [0.0],
        "OUTPUT_DIR": str(folder / "run"),
        "REPORT.ENABLED": False,
    }
    return overridden(cfg, values)


def scaled(
    seconds: Mapping[str, float], *, steps: float, rounds: int, train: float, test: float
) -> dict[str, float]:
    """A trial's seconds by stage, scaled to the whole run by the data that each stage processes."""
    factors = {"pretraining": steps, "earlier rounds": steps * rounds}
    factors |= {"features of train.csv": train, "linear probe": train}
    return {stage: spent * factors.get(stage, test) for stage, spent in seconds.items()}


def write_few(videos: VideoList, count: int, path: Path, root: str) -> str:
    """Write a list of `count` evenly spaced videos to `path`; returns that path."""
    count = min(count, len(videos))
    chosen = [videos.videos[i * len(videos) // count] for i in range(count)]
    rows = [
        Row(
            os.path.relpath(video.path, root),
            videos.classes[video.label] if video.label >= 0 else "",
            str(video.group) if video.group >= 0 else "",
            video.span,
        )
        for video in chosen
    ]
    write_list(path, rows)
    return str(path)
