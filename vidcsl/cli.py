"""The command line: `vidcsl train | evaluate | prepare | report | compare`."""

import argparse
import errno
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from vidcsl import __version__
from vidcsl.config import load_config
from vidcsl.data.prepare import command
from vidcsl.engine import distributed
from vidcsl.engine.train import Interrupted
from vidcsl.errors import UserError
from vidcsl.report.compare import compare
from vidcsl.report.html import write_report
from vidcsl.stages.run import evaluate_checkpoint, headline, train_and_evaluate

# Faults of the machine that a person can put right, and how.
_MACHINE = {
    errno.ENOSPC: "the disk is full; free some space and continue with --resume",
    errno.EDQUOT: "the disk quota is used up; free some space and continue with --resume",
    errno.EACCES: "permission denied",
    errno.EROFS: "the file system is read-only",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; 0 when it went well, 2 for an error that the user can put right."""
    args = _parser().parse_args(argv)
    try:
        args.run(args)
    except UserError as error:
        return _fail(str(error), debug=args.debug)
    except OSError as error:
        if error.errno not in _MACHINE:
            raise
        where = f"{error.filename}: " if error.filename else ""
        return _fail(f"{where}{_MACHINE[error.errno]}", debug=args.debug)
    return 0


def _fail(message: str, *, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    rank = os.environ.get("RANK", "0")
    who = "vidcsl" if rank == "0" else f"vidcsl (process {rank})"
    print(f"{who}: error: {message}", file=sys.stderr)
    return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vidcsl",
        description="Contrastive pretraining on video, and how robust the result is.",
    )
    parser.add_argument("--version", action="version", version=f"vidcsl {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    train = commands.add_parser("train", help="pretrain, evaluate and report")
    _add_config(train)
    train.add_argument("--resume", action="store_true", help="continue the run in OUTPUT_DIR")
    train.set_defaults(run=_train)

    evaluate = commands.add_parser("evaluate", help="evaluate and report, from a checkpoint")
    _add_config(evaluate)
    evaluate.add_argument("--checkpoint", type=Path, help="default: the newest in OUTPUT_DIR")
    evaluate.set_defaults(run=_evaluate)

    prepare = commands.add_parser("prepare", help="make lists of videos")
    command.add_arguments(prepare)
    prepare.set_defaults(run=command.run)

    report = commands.add_parser("report", help="write report.html of a run's folder anew")
    report.add_argument("folder", type=Path)
    report.set_defaults(run=_report)

    comparison = commands.add_parser("compare", help="a table of several runs, and the gap closed")
    comparison.add_argument("folders", type=Path, nargs="+")
    comparison.add_argument("--baseline", required=True, help="name of the plain contrastive run")
    comparison.add_argument("--reference", required=True, help="name of the run to catch up with")
    comparison.set_defaults(run=_compare)
    for each in (train, evaluate, prepare, report, comparison):
        each.add_argument("--debug", action="store_true", help="show tracebacks of errors")
    return parser


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cfg", required=True, help="config file (YAML)")
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY VALUE", help="options that override the file's"
    )


def _train(args: argparse.Namespace) -> None:
    cfg = load_config(args.cfg, args.overrides)
    with distributed.start(cfg.DEVICE) as world:
        try:
            folder = train_and_evaluate(cfg, world, resume=args.resume)
        except Interrupted as interruption:
            if world.is_main:
                print(f"vidcsl: {interruption}", file=sys.stderr)
            raise SystemExit(128 + interruption.number) from None
        if world.is_main:
            print(headline(folder))


def _evaluate(args: argparse.Namespace) -> None:
    cfg = load_config(args.cfg, args.overrides)
    with distributed.start(cfg.DEVICE) as world:
        folder = evaluate_checkpoint(cfg, world, checkpoint=args.checkpoint)
        if world.is_main:
            print(headline(folder))


def _compare(args: argparse.Namespace) -> None:
    print(compare(args.folders, baseline=args.baseline, reference=args.reference))


def _report(args: argparse.Namespace) -> None:
    print(write_report(args.folder))


if __name__ == "__main__":
    raise SystemExit(main())
