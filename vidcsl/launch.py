"""Commands as jobs: submitit submits them to Slurm, or torchrun starts their processes here.

A job is one task per node, each a torchrun agent, so that the processes of a run start in the same
way by hand, here and on a cluster. The commands must be able to continue by themselves
(`--resume`): a cluster queues a job again when it is preempted or its time is over.

Importing this imports neither torch nor submitit.
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
AGENT = {  # environment of torchrun
    "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(SAVING_SECONDS - 30),
    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",  # otherwise restarts on several nodes hang
}
MOST_REQUEUES = 1000  # a long training run may reach its time limit often
FIRST_PORT, PORTS = 20000, 10000


@dataclass(frozen=True)
class Resources:
    """What one job requests.

    Attributes:
        nodes: machines.
        gpus: of each node; 0: none.
        processes: of each node; 0: one per GPU, at least one.
        cpus: cores of each node; 0: the cluster's default.
        memory_gb: of each node; 0: the cluster's default.
        hours: time limit, after which the job is queued again.
        partition: of Slurm; empty: its default.
        restarts: how often processes that died are restarted within the job.
        sbatch: further options of Slurm, by name.
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
    """A submitted command.

    Attributes:
        job_id: Slurm's, or the process id of torchrun on this machine. `kill` ends that process,
            and the command saves its state first.
        log: its output.
        exception: waits until the job has ended; None if it succeeded.
    """

    job_id: str
    log: Path
    exception: Callable[[], BaseException | None]


@dataclass(frozen=True)
class TorchRun:
    """A `vidcsl` command under torchrun, as each node of a job runs it.

    Args:
        arguments: of the command, without `vidcsl`.
        processes: of each node.
        restarts: of processes that died.
    """

    arguments: tuple[str, ...]
    processes: int
    restarts: int

    def __call__(self) -> None:
        """Run to the end. Raises RuntimeError if the command fails."""
        # A session of its own: Slurm signals a task's whole process group, and only this process
        # may receive that, which translates it into the SIGTERM that the training loop understands.
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
            raise RuntimeError(f"vidcsl {self.arguments[0]} ended with code {code}: see its log")

    def checkpoint(self) -> Any:
        """submitit calls this when the job must end: save, stop, and queue the same command again.

        submitit calls it from a signal handler, while `__call__` waits in this process.
        """
        import submitit

        for pid in _CHILDREN:
            os.kill(pid, signal.SIGTERM)
            _await_end(pid)
        return submitit.helpers.DelayedSubmission(self)

    def node_command(self) -> list[str]:
        """The command line of this node's agent, read from the job that runs it."""
        import submitit

        job = submitit.JobEnvironment()
        if job.num_nodes == 1:
            return self.command()
        port = FIRST_PORT + int(job.raw_job_id) % PORTS  # jobs that share a node should differ
        return self.command(
            [
                f"--nnodes={job.num_nodes}",
                "--rdzv-backend=c10d",
                f"--rdzv-id={job.job_id}",
                f"--rdzv-endpoint={job.hostnames[0]}:{port}",
                f"--rdzv-conf=is_host={int(job.node == 0)}",
            ]
        )

    def command(self, rendezvous: Sequence[str] = ("--standalone",)) -> list[str]:
        """The command line of a node's agent; `rendezvous` says where the agents meet."""
        counts = (f"--nproc-per-node={self.processes}", f"--max-restarts={self.restarts}")
        agent = (sys.executable, "-m", "torch.distributed.run")
        return [*agent, *rendezvous, *counts, "-m", "vidcsl.cli", *self.arguments]


# Process ids of torchrun agents, for the signal handler. Not a field: a TorchRun is pickled.
_CHILDREN: list[int] = []


def _await_end(pid: int) -> None:
    """Wait for a child but leave it to `Popen`, whose lock a signal handler must not touch."""
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


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
        commands: arguments of `vidcsl` commands, which must continue where they stopped
            (`--resume`).
        launcher: "slurm", or "local": processes of this machine that outlive this one, all at
            once and without a time limit; of `resources` they use processes and restarts.
        folder: of logs and of submitit's files; on a cluster all nodes must see it.
        resources: of each command.
        name: of the jobs.
        at_once: jobs of an array that may run at the same time; 0: all.

    Raises:
        UserError: submitit or Slurm is missing, or refuses.
    """
    # Under torchrun even with one process: its agent restarts what dies.
    runs = [
        TorchRun(tuple(arguments), resources.processes_per_node, resources.restarts)
        for arguments in commands
    ]
    if not runs:
        return []
    try:
        if launcher == "local":
            if resources.nodes > 1:
                raise UserError("--launcher local has one node; several need --launcher slurm")
            folder.mkdir(parents=True, exist_ok=True)
            return [_start_here(run, folder) for run in runs]
        return _submit_to_slurm(runs, folder, resources, name=name, at_once=at_once or len(runs))
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"the job was rejected by {launcher}: {reason}") from error


def _submit_to_slurm(
    runs: Sequence[TorchRun], folder: Path, resources: Resources, *, name: str, at_once: int
) -> list[Job]:
    try:
        import submitit
    except ImportError:
        raise UserError("--launcher slurm needs submitit: pip install 'vidcsl[slurm]'") from None
    if shutil.which("srun") is None:
        raise UserError("Slurm is not available (srun is not found); use --launcher local")
    executor = submitit.AutoExecutor(folder, cluster="slurm", slurm_max_num_timeout=MOST_REQUEUES)
    executor.update_parameters(  # None: the cluster's default
        name=name,
        nodes=resources.nodes,
        tasks_per_node=1,
        gpus_per_node=resources.gpus or None,
        cpus_per_task=resources.cpus or None,
        mem_gb=resources.memory_gb or None,
        timeout_min=max(1, round(resources.hours * 60)),
        slurm_partition=resources.partition or None,
        slurm_signal_delay_s=SAVING_SECONDS,
        slurm_array_parallelism=at_once,
        # `requeue`: after the failure of a node, too.
        slurm_additional_parameters={"requeue": True, **resources.sbatch},
    )
    with executor.batch():
        jobs = [executor.submit(run) for run in runs]
    return [Job(job.job_id, job.paths.stderr, job.exception) for job in jobs]


def _start_here(run: TorchRun, folder: Path) -> Job:
    """Start a job in a session of its own, so that it outlives this process and its terminal."""
    with tempfile.NamedTemporaryFile(dir=folder, delete=False) as log:
        process = subprocess.Popen(
            run.command(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env={**os.environ, **AGENT},
        )
    # Named by the process, whose id is known only now; it goes on writing to the open file.
    path = Path(log.name).rename(folder / f"{process.pid}.log")

    def exception() -> RuntimeError | None:
        code = process.wait()
        return RuntimeError(f"it ended with code {code}") if code else None

    return Job(str(process.pid), path, exception)
