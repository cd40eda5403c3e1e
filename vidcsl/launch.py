"""Runs as jobs: submitit hands them to Slurm, and torchrun starts their processes, here too.

A job is one task a node, each a torchrun agent, so that the processes of a run start in the same
way by hand, here and on a cluster. Jobs must be able to go on by themselves (`--resume`): on a
cluster they are queued anew when they are pre-empted or their time is over.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vidcsl.errors import UserError

LAUNCHERS = ("local", "slurm")
SAVING_SECONDS = 180  # from the warning to the end of a job: a step and a checkpoint must fit
AGENT = {  # of torchrun's
    "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(SAVING_SECONDS - 30),
    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",  # else restarts on several nodes hang
}
MOST_REQUEUES = 1000  # a long training may meet its time limit often
FIRST_PORT, PORTS = 20000, 10000


@dataclass(frozen=True)
class Resources:
    """What one job asks for.

    Attributes:
        nodes: machines.
        gpus: of each node; 0: none.
        processes: of each node; 0: one a GPU, at least one.
        cpus: cores of each node; 0: as the cluster decides.
        memory_gb: of each node; 0: as the cluster decides.
        hours: after which it is queued anew.
        partition: of Slurm; empty: its default.
        restarts: how often processes that died are started anew within the job.
        sbatch: further options of Slurm's, by name.
    """

    nodes: int = 1
    gpus: int = 0
    processes: int = 0
    cpus: int = 0
    memory_gb: float = 0.0
    hours: float = 24.0
    partition: str = ""
    restarts: int = 3
    sbatch: Mapping[str, str] = field(default_factory=dict)

    @property
    def processes_per_node(self) -> int:
        """Training processes of each node."""
        return self.processes or max(1, self.gpus)


@dataclass(frozen=True)
class Job:
    """What was submitted.

    Attributes:
        job_id: Slurm's, or of this machine the number of torchrun's process: `kill` ends it, and
            what it runs saves first.
        log: what it says.
        exception: waits for its end; None where that was good.
    """

    job_id: str
    log: Path
    exception: Callable[[], BaseException | None]


@dataclass(frozen=True)
class TorchRun:
    """A `vidcsl` command under torchrun, as one node of a job runs it.

    Args:
        words: of the command, without `vidcsl`.
        processes: of each node.
        restarts: of processes that died.
    """

    words: tuple[str, ...]
    processes: int
    restarts: int

    def __call__(self) -> None:
        """Run to the end. Raises RuntimeError where it does not end well."""
        # A session of its own: Slurm signals a task's whole process group, and only this process,
        # which passes the warning on in a form that the training understands, may hear of it.
        child = subprocess.Popen(
            self.node_command(), start_new_session=True, env={**os.environ, **AGENT}
        )
        _CHILDREN.append(child.pid)
        try:
            _await_end(child.pid)
            code = child.wait()
        finally:
            _CHILDREN.clear()
            if child.returncode is None:
                child.terminate()
        if code:
            raise RuntimeError(f"vidcsl {self.words[0]} ended with code {code}: see its log")

    def checkpoint(self) -> Any:
        """What submitit calls when the job must go: save, end, and queue the same again."""
        import submitit

        for pid in _CHILDREN:
            os.kill(pid, signal.SIGTERM)
            _await_end(pid)
        return submitit.helpers.DelayedSubmission(self)

    def node_command(self) -> list[str]:
        """The command line of the agent of this node, read from the job that runs it."""
        import submitit

        job = submitit.JobEnvironment()
        where = ["--standalone"] if job.num_nodes == 1 else _meeting_place(job)
        return self.command(where)

    def command(self, where: Sequence[str] = ("--standalone",)) -> list[str]:
        """The command line of a node's agent; `where` says how the agents meet."""
        counts = (f"--nproc-per-node={self.processes}", f"--max-restarts={self.restarts}")
        agent = (sys.executable, "-m", "torch.distributed.run")
        return [*agent, *where, *counts, "-m", "vidcsl.cli", *self.words]


_CHILDREN: list[int] = []  # of this process; what a job runs is pickled, and this is not


def submit(
    commands: Sequence[Sequence[str]],
    *,
    launcher: str,
    folder: Path,
    resources: Resources,
    name: str = "vidcsl",
    at_once: int = 0,
) -> list[Job]:
    """Submit commands, several of them as one array; their jobs, in order.

    Args:
        commands: words of `vidcsl` commands; they must go on where they were (`--resume`).
        launcher: "slurm", or "local": processes of this machine that outlive this one, all at
            once and without a limit of time; of `resources` they know processes and restarts.
        folder: of logs and of what submitit keeps; on a cluster all nodes must see it.
        resources: of each command.
        name: of the jobs.
        at_once: jobs of an array that may run at a time; 0: all.

    Raises:
        UserError: submitit or Slurm is missing, or refuses.
    """
    runs = [
        TorchRun(tuple(words), resources.processes_per_node, resources.restarts)
        for words in commands
    ]
    if not runs:
        return []
    try:
        if launcher == "local":
            return _submit_here(runs, folder, resources)
        return _submit_to_slurm(runs, folder, resources, name=name, at_once=at_once or len(runs))
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"the job was not accepted by {launcher}: {reason}") from error


def _submit_to_slurm(
    runs: Sequence[TorchRun], folder: Path, resources: Resources, *, name: str, at_once: int
) -> list[Job]:
    submitit = _submitit()
    if shutil.which("srun") is None:
        raise UserError("there is no Slurm here: srun is not found; use --launcher local")
    executor = submitit.AutoExecutor(folder, cluster="slurm", slurm_max_num_timeout=MOST_REQUEUES)
    executor.update_parameters(name=name, **_parameters(resources, at_once=at_once))
    with executor.batch():
        jobs = [executor.submit(run) for run in runs]
    return [Job(job.job_id, job.paths.stderr, job.exception) for job in jobs]


def _submit_here(runs: Sequence[TorchRun], folder: Path, resources: Resources) -> list[Job]:
    if resources.nodes > 1:
        raise UserError("--launcher local has one node; several need --launcher slurm")
    folder.mkdir(parents=True, exist_ok=True)
    return [_start(run, folder) for run in runs]


def _start(run: TorchRun, folder: Path) -> Job:
    """Start a job in a session of its own: what ends this process or its terminal spares it."""
    with tempfile.NamedTemporaryFile(dir=folder, delete=False) as log:
        process = subprocess.Popen(
            run.command(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env={**os.environ, **AGENT},
        )
    path = Path(log.name).rename(folder / f"{process.pid}.log")

    def exception() -> RuntimeError | None:
        code = process.wait()
        return RuntimeError(f"it ended with code {code}") if code else None

    return Job(str(process.pid), path, exception)


def _parameters(resources: Resources, *, at_once: int) -> dict[str, Any]:
    """In submitit's words; None leaves the choice to the cluster."""
    return {
        "nodes": resources.nodes,
        "tasks_per_node": 1,
        "gpus_per_node": resources.gpus or None,
        "cpus_per_task": resources.cpus or None,
        "mem_gb": resources.memory_gb or None,
        "timeout_min": max(1, round(resources.hours * 60)),
        "slurm_partition": resources.partition or None,
        "slurm_signal_delay_s": SAVING_SECONDS,
        "slurm_array_parallelism": at_once,
        # After the failure of a node, too.
        "slurm_additional_parameters": {"requeue": True, **resources.sbatch},
    }


def _meeting_place(job: Any) -> list[str]:
    """Where the agents of several nodes meet: on the first."""
    port = FIRST_PORT + int(job.raw_job_id) % PORTS
    return [
        f"--nnodes={job.num_nodes}",
        "--rdzv-backend=c10d",
        f"--rdzv-id={job.job_id}",
        f"--rdzv-endpoint={job.hostnames[0]}:{port}",
        f"--rdzv-conf=is_host={int(job.node == 0)}",
    ]


def _await_end(pid: int) -> None:
    """Wait for a child but leave it to `Popen`, whose lock a signal handler must not touch."""
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


def _submitit() -> Any:
    try:
        import submitit
    except ImportError:
        raise UserError("--launcher slurm needs submitit: pip install 'vidcsl[slurm]'") from None
    return submitit
