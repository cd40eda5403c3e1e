"""Arguments that several commands share: a config, a model, and the job that runs the command.

Nothing here imports torch: a command's `--help` answers at once.
"""

import argparse
import math
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from vidcsl.errors import UserError
from vidcsl.launch import LAUNCHERS, Resources, submit

if TYPE_CHECKING:
    from fvcore.common.config import CfgNode

Number = TypeVar("Number", int, float)

# What people change first; `vidcsl show options` lists all.
FIRST_OPTIONS = """\
the keys that are changed most (vidcsl show options WORD finds others):
  DATA.ROOT DIR             folder of the videos
  DATA.TRAIN_LIST FILE      their list, made by vidcsl prepare
  DATA.TEST_LIST FILE       labelled videos to evaluate on; '': none
  OUTPUT_DIR DIR            where everything is written
  TRAIN.EPOCHS N            passes over the training list
  TRAIN.BATCH N             videos in a step
  MODEL.WIDTH N             channels of the encoder's first stage: its size
  MODEL.FRAME_SIZE N        pixels a side of a clip
  FALSE_NEGATIVES.DETECTOR  none, teacher, labels, ...: what flags false negatives
  ATTACK.RUNS LIST          attacks of the evaluation; []: none
"""


def add_config(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """`--cfg FILE KEY VALUE ...`."""
    parser.add_argument(
        "--cfg", required=required, help="a config file, or the name of a shipped config"
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY VALUE", help="options that override the file"
    )


def config_of(args: argparse.Namespace) -> "CfgNode":
    """The config that the command was called with; what may surprise is said on stderr.

    Without `--cfg` it is that of the run that `--checkpoint` names, and its folder is OUTPUT_DIR.

    Raises:
        UserError: it cannot be read, a key or a value is wrong, or no config is named.
    """
    from vidcsl.config import load_config

    overrides = overrides_of(args)
    if args.cfg:
        return load_config(args.cfg, overrides, announce=say)
    given = getattr(args, "checkpoint", None) or []
    first = next(iter(given if isinstance(given, list) else [given]), None)
    if first is None:
        raise UserError("give --cfg, or --checkpoint RUN_FOLDER, whose config it takes")
    folder = first if _is_run(first) else first.parent.parent
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{first} belongs to no run with a config.yaml: give --cfg")
    say(f"config: {folder / 'config.yaml'}")
    here = ["OUTPUT_DIR", str(folder)]  # the folder may have been moved since
    return load_config(folder / "config.yaml", [*here, *overrides], announce=say)


def checkpoint_of(args: argparse.Namespace, given: Path | None) -> Path | None:
    """The checkpoint file that is meant: the newest, where a run's folder is given.

    Raises:
        UserError: that run has no checkpoint.
    """
    if given is None or not _is_run(given):
        return given
    from vidcsl.run_folder import RunFolder
    from vidcsl.training.checkpoint import list_checkpoints

    found = list_checkpoints(RunFolder(given).checkpoints)
    if found:
        say(f"checkpoint: {found[-1]}")
        return found[-1]
    if args.cfg or not RunFolder(given).config.is_file():
        raise UserError(f"no checkpoint in {RunFolder(given).checkpoints}: train first")
    return None  # the folder of an evaluation: its config names the weights


def _is_run(path: Path) -> bool:
    """Whether this is a run's folder; a sharded checkpoint is a folder, too."""
    return path.is_dir() and ((path / "config.yaml").is_file() or (path / "checkpoints").is_dir())


def say(sentence: str) -> None:
    """Tell the person at the terminal; of several processes, the first does."""
    if os.environ.get("RANK", "0") == "0":
        print(f"vidcsl: {sentence}", file=sys.stderr, flush=True)


def add_model(parser: argparse.ArgumentParser, *, several: bool = False) -> None:
    """`--checkpoint FILE`, which may be given several times, or `--weights FORMAT:PATH`."""
    default = (
        "a checkpoint, or a run's folder for its newest one; the run's own config is used unless "
        "--cfg is given; default: the newest in OUTPUT_DIR"
    )
    if several:
        parser.add_argument(
            "--checkpoint",
            type=Path,
            action="append",
            default=[],
            help=f"may be given several times, to compare models; {default}",
        )
    else:
        parser.add_argument("--checkpoint", type=Path, help=default)
    add_weights(parser)


def add_weights(parser: argparse.ArgumentParser) -> None:
    """`--weights FORMAT:PATH`."""
    parser.add_argument(
        "--weights",
        metavar="FORMAT:PATH",
        help="pretrained weights, as in MODEL.WEIGHTS; docs/models.md lists the formats",
    )


def overrides_of(args: argparse.Namespace) -> list[str]:
    """KEY VALUE pairs of the command line, `--weights` among them.

    Raises:
        UserError: both `--weights` and `--checkpoint` are given.
    """
    if getattr(args, "weights", None) and getattr(args, "checkpoint", None):
        raise UserError("give either --weights or --checkpoint: each names the model")
    weights = getattr(args, "weights", None)
    return [*args.overrides, *(["MODEL.WEIGHTS", weights] if weights else [])]


def at_least(least: Number) -> Callable[[str], Number]:
    """An argument type: a finite number of the same kind as `least`, and no smaller."""
    kind = type(least)

    def number(text: str) -> Number:
        value = kind(text)
        if not least <= value < math.inf:
            raise argparse.ArgumentTypeError(f"{text} is not a number of at least {least}")
        return value

    number.__name__ = {int: "whole number", float: "number"}[kind]  # argparse prints it in errors
    return number


def comma_separated(text: str) -> tuple[str, ...]:
    """An argument type: `a,b,c` as ("a", "b", "c")."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def add_launcher(parser: argparse.ArgumentParser) -> None:
    """`--launcher`, and the resources of a job."""
    defaults = Resources()
    group = parser.add_argument_group("jobs", "run as a job, see docs/cluster.md")
    group.add_argument(
        "--launcher", choices=LAUNCHERS, help="what starts the job; default: this process runs it"
    )
    group.add_argument(
        "--nodes", type=at_least(1), default=defaults.nodes, help="machines (%(default)s)"
    )
    group.add_argument(
        "--gpus", type=at_least(0), default=defaults.gpus, help="GPUs per node (%(default)s)"
    )
    group.add_argument(
        "--processes",
        type=at_least(0),
        default=defaults.processes,
        help="processes per node; 0: one per GPU (%(default)s)",
    )
    group.add_argument(
        "--cpus", type=at_least(0), default=defaults.cpus, help="cores per node (%(default)s)"
    )
    group.add_argument(
        "--memory-gb",
        type=at_least(0.0),
        default=defaults.memory_gb,
        help="memory per node in GB (%(default)s)",
    )
    group.add_argument(
        "--hours",
        type=at_least(0.1),
        default=defaults.hours,
        help="time limit, after which the job is requeued and resumes (%(default)s)",
    )
    group.add_argument("--partition", default=defaults.partition, help="Slurm partition")
    group.add_argument(
        "--restarts",
        type=at_least(0),
        default=defaults.restarts,
        help="restarts after a process died (%(default)s)",
    )
    group.add_argument(
        "--sbatch", action="append", default=[], metavar="NAME=VALUE", help="any sbatch option"
    )
    group.add_argument("--wait", action="store_true", help="wait until the jobs have ended")


def refuse_job_options(args: argparse.Namespace, *, used: Sequence[str] = ()) -> None:
    """Raise a UserError where a job option is given without `--launcher`.

    Args:
        args: arguments of a command that was called without `--launcher`.
        used: fields of `Resources` that this command uses without a launcher.
    """
    idle = [*_changed(args, ignore=used), *(["wait"] if args.wait else [])]
    if idle:
        raise UserError(f"{_option(idle[0])} is a job option: add --launcher, or call torchrun")


def launch(
    commands: Sequence[Sequence[str]],
    args: argparse.Namespace,
    *,
    folder: Path,
    name: str,
    at_once: int = 0,
) -> None:
    """Submit commands as jobs, print where they log and, with `--wait`, wait for them.

    Raises:
        UserError: the jobs cannot be submitted as asked, or one of them failed.
    """
    local = ("gpus", "processes", "restarts")  # what torchrun on this machine can honour
    if args.launcher == "local" and (idle := _changed(args, ignore=local)):
        raise UserError(f"{_option(idle[0])} is a Slurm option: --launcher local has no limits")
    jobs = submit(
        commands,
        launcher=args.launcher,
        folder=folder,
        resources=_resources(args),
        name=name,
        at_once=at_once,
    )
    for job in jobs:
        print(f"vidcsl: job {job.job_id}, log {job.log}", file=sys.stderr)
    if not args.wait:
        return
    try:
        failed = [job for job in jobs if job.exception() is not None]
    except KeyboardInterrupt:
        print("\nvidcsl: stopped waiting; the jobs continue", file=sys.stderr)
        raise SystemExit(128 + signal.SIGINT) from None
    if failed:
        raise UserError(
            f"{len(failed)} of {len(jobs)} jobs failed, first {failed[0].job_id}: see "
            f"{failed[0].log}"
        )


def _resources(args: argparse.Namespace) -> Resources:
    wrong = [text for text in args.sbatch if "=" not in text]
    if wrong:
        raise UserError(f"--sbatch {wrong[0]}: expected NAME=VALUE, such as qos=low")
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


def _changed(args: argparse.Namespace, *, ignore: Sequence[str]) -> list[str]:
    """The fields of `Resources` that differ from their defaults."""
    asked, defaults = _resources(args), Resources()
    names = [each.name for each in fields(Resources) if each.name not in ignore]
    return [name for name in names if getattr(asked, name) != getattr(defaults, name)]


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"
