"""Arguments of commands that can be handed to a cluster, and the handing over."""

import argparse
import signal
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from vidcsl.commands.arguments import at_least
from vidcsl.errors import UserError
from vidcsl.launch import LAUNCHERS, Job, Resources, submit

LOCAL = ("gpus", "processes", "restarts")  # what `--launcher local` knows of `Resources`


def add_launcher(parser: argparse.ArgumentParser) -> None:
    """`--launcher` and what a job asks for."""
    defaults = Resources()
    group = parser.add_argument_group("jobs", "run as a job, see docs/cluster.md")
    group.add_argument("--launcher", choices=LAUNCHERS, help="who runs it; default: this process")
    none = at_least(0)
    group.add_argument(
        "--nodes", type=at_least(1), default=defaults.nodes, help="machines of a job"
    )
    group.add_argument("--gpus", type=none, default=defaults.gpus, help="GPUs of each node")
    group.add_argument(
        "--processes", type=none, default=defaults.processes, help="of each node; 0: one a GPU"
    )
    group.add_argument("--cpus", type=none, default=defaults.cpus, help="cores of each node")
    group.add_argument(
        "--memory-gb", type=at_least(0.0), default=defaults.memory_gb, help="memory of each node"
    )
    group.add_argument(
        "--hours", type=at_least(0.1), default=defaults.hours, help="then the job is queued anew"
    )
    group.add_argument("--partition", default=defaults.partition, help="of Slurm")
    group.add_argument(
        "--restarts", type=none, default=defaults.restarts, help="of processes that died"
    )
    group.add_argument(
        "--sbatch", action="append", default=[], metavar="NAME=VALUE", help="any option of sbatch"
    )
    group.add_argument("--wait", action="store_true", help="until the jobs have ended")


def resources_of(args: argparse.Namespace) -> Resources:
    """What the arguments ask for."""
    wrong = [text for text in args.sbatch if "=" not in text]
    if wrong:
        raise UserError(f"--sbatch {wrong[0]}: expected NAME=VALUE, as qos=low")
    return Resources(
        nodes=args.nodes,
        gpus=args.gpus,
        processes=args.processes,
        cpus=args.cpus,
        memory_gb=args.memory_gb,
        hours=args.hours,
        partition=args.partition,
        restarts=args.restarts,
        sbatch=dict(text.split("=", 1) for text in args.sbatch),
    )


def refuse_unlaunched(args: argparse.Namespace, *, used: Sequence[str] = ()) -> None:
    """Raise a UserError where something was asked of a job, but no launcher is to start one.

    Args:
        args: of a command without `--launcher`.
        used: attributes that mean something to it all the same.
    """
    idle = [*_asked(args, but=used), *(["wait"] if args.wait else [])]
    if idle:
        raise UserError(
            f"{_option(idle[0])} is of jobs: give --launcher too, or start torchrun by hand"
        )


def _asked(args: argparse.Namespace, *, but: Sequence[str]) -> list[str]:
    """What was asked of a job, by the fields of `Resources`."""
    asked, defaults = resources_of(args), Resources()
    names = [each.name for each in fields(Resources) if each.name not in but]
    return [name for name in names if getattr(asked, name) != getattr(defaults, name)]


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def launch(
    commands: Sequence[Sequence[str]],
    args: argparse.Namespace,
    *,
    folder: Path,
    name: str,
    at_once: int = 0,
) -> None:
    """Submit commands as jobs, say where they log and, with `--wait`, wait for them.

    Raises:
        UserError: they cannot be submitted, or not as asked; or one did not end well.
    """
    if args.launcher == "local" and (idle := _asked(args, but=LOCAL)):
        raise UserError(f"{_option(idle[0])} is of Slurm's jobs: --launcher local has no limits")
    jobs = submit(
        commands,
        launcher=args.launcher,
        folder=folder,
        resources=resources_of(args),
        name=name,
        at_once=at_once,
    )
    for job in jobs:
        print(f"vidcsl: job {job.job_id}, log {job.log}", file=sys.stderr)
    if args.wait:
        _await_all(jobs)


def _await_all(jobs: Sequence[Job]) -> None:
    try:
        failed = [job for job in jobs if job.exception() is not None]
    except KeyboardInterrupt:
        print("vidcsl: no longer waiting; the jobs go on", file=sys.stderr)
        raise SystemExit(128 + signal.SIGINT) from None
    if failed:
        raise UserError(
            f"{len(failed)} of {len(jobs)} jobs failed, first {failed[0].job_id}: see "
            f"{failed[0].log}"
        )
