"""The command line: `vidcsl COMMAND ...`, see `vidcsl.commands`."""

import argparse
import errno
import os
import select
import signal
import sys
import traceback
from collections.abc import Sequence

from vidcsl import __version__
from vidcsl.errors import PassingError, UserError

# Faults of the machine that a person can put right, and how.
_AGAIN = "free some space and call again (training: with --resume)"
_MACHINE = {
    errno.ENOSPC: f"the disk is full; {_AGAIN}",
    errno.EDQUOT: f"the disk quota is used up; {_AGAIN}",
    errno.EACCES: "permission denied",
    errno.EROFS: "the file system is read-only",
    errno.ENOENT: "no such file or folder",
    errno.ENOTDIR: "not a folder",
    errno.EISDIR: "is a folder, not a file",
    errno.EEXIST: "is there already",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; 0 when it went well, 2 for an error that the user can put right."""
    args = _parsed(argv)
    try:
        args.run(args)
        sys.stdout.flush()
    except UserError as error:
        return _fail(str(error), debug=args.debug, passing=isinstance(error, PassingError))
    except OSError as error:
        if isinstance(error, BrokenPipeError) and _reader_gone():
            return 141  # as the shell has it: 128 + SIGPIPE
        if error.errno not in _MACHINE:
            raise
        where = f"{error.filename}: " if error.filename else ""
        return _fail(f"{where}{_MACHINE[error.errno]}", debug=args.debug)
    return 0


def _parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments, KEY VALUE after other options too, where argparse does not look for them."""
    parser = _parser()
    args, rest = parser.parse_known_args(argv)
    if rest and ("overrides" not in args or any(word.startswith("--") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        args.overrides = [*args.overrides, *rest]
    return args


def _reader_gone() -> bool:
    """Whether nobody reads what is printed any more (`| head`); then nothing more is printed."""
    watched = select.poll()
    watched.register(sys.stdout.fileno(), 0)
    gone = any(event & select.POLLERR for _file, event in watched.poll(0))
    if gone:  # else the interpreter complains once more when it ends and flushes
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return gone


def _fail(message: str, *, debug: bool, passing: bool = False) -> int:
    if debug:
        traceback.print_exc()
    rank = os.environ.get("RANK", "0")
    who = "vidcsl" if rank == "0" else f"vidcsl (process {rank})"
    print(f"{who}: error: {message}", file=sys.stderr, flush=True)
    if not passing:
        _spare_restarts()
    return 2


def _spare_restarts() -> None:
    """End torchrun's agent, where it would start this process anew: the error would come again."""
    restarts = int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", 0))
    if restarts > int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)):
        os.kill(os.getppid(), signal.SIGTERM)


def _parser() -> argparse.ArgumentParser:
    # Here, because worker processes import this module anew and need none of what commands need.
    from vidcsl.commands import COMMANDS

    parser = argparse.ArgumentParser(
        prog="vidcsl",
        description="Contrastive pretraining on video, and how robust the result is.",
    )
    parser.add_argument("--version", action="version", version=f"vidcsl {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        sub = commands.add_parser(name, help=command.HELP, description=command.HELP)
        command.add_arguments(sub)
        sub.add_argument("--debug", action="store_true", help="show tracebacks of errors")
        sub.set_defaults(run=command.run)
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
