"""The command line: `vidcsl COMMAND ...`. A command's module is imported when it is called."""

import argparse
import errno
import importlib
import os
import select
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

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
    errno.EEXIST: "already exists",
}


COMMANDS = {  # name: the module that holds the function of this name, and one line of help
    "train": ("vidcsl.commands.train", "pretrain, evaluate and report"),
    "evaluate": ("vidcsl.commands.train", "evaluate and report, from a checkpoint or weights"),
    "attack": ("vidcsl.commands.robustness", "attack a model and save the attacked clips"),
    "transfer": ("vidcsl.commands.robustness", "test attacked clips on other models"),
    "corrupt": (
        "vidcsl.commands.robustness",
        "compare models under corruption, or write the corrupted test videos",
    ),
    "replay": (
        "vidcsl.commands.train",
        "repeat a step whose loss diverged, and name what was not finite",
    ),
    "export": ("vidcsl.commands.train", "write an encoder as files that other programs load"),
    "prepare": ("vidcsl.commands.prepare", "make lists of videos; check, shrink or pack videos"),
    "show": (
        "vidcsl.commands.show",
        "show encoders and their cost, or a config's clips",
    ),
    "neighbours": (
        "vidcsl.commands.neighbours",
        "measure which training videos a teacher takes for false negatives, before training",
    ),
    "report": ("vidcsl.commands.report", "write report.html of a run's folder again"),
    "compare": ("vidcsl.commands.report", "tables of several runs, and the gap closed"),
    "study": ("vidcsl.commands.study", "run arms x seeds, then write tables, tests and a page"),
    "gallery": ("vidcsl.commands.robustness", "a page that shows every corruption of a video"),
    "doctor": (
        "vidcsl.commands.show",
        "check versions, readers, codecs, devices, storage and the lists of a config",
    ),
}


# How to go on after Ctrl-C, where what was done is kept.
_GO_ON = {
    "train": "; continue with --resume",
    **dict.fromkeys(
        ("evaluate", "attack", "corrupt", "prepare", "study", "neighbours"),
        "; run the same command again to continue",
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        0 when it went well, 2 for an error that the user can put right, 130 after Ctrl-C.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    _open_closed_streams()
    # What libraries warn of is one line, without a place in the source that nobody asked for.
    warnings.formatwarning = lambda message, *_, **__: (
        f"vidcsl: warning: {' '.join(str(message).split())}\n"
    )
    received: list[int] = []
    try:
        with _noted_interrupts(received, words):
            try:
                args = _parsed(words)
                args.run(args)
                sys.stdout.flush()
            except Exception:
                # Libraries turn an interrupt that reaches them into errors of their own.
                if received:
                    raise KeyboardInterrupt from None
                raise
    except KeyboardInterrupt:
        return _interrupted(words, debug=debug)
    except UserError as error:
        return _fail(str(error), debug=debug, passing=isinstance(error, PassingError))
    except (MemoryError, RuntimeError) as error:
        if not _out_of_memory(error):
            raise
        return _fail(_LESS_MEMORY, debug=debug, passing=True)
    except OSError as error:
        if isinstance(error, BrokenPipeError) and _reader_gone():
            return 141  # as the shell has it: 128 + SIGPIPE
        if error.errno not in _MACHINE:
            raise
        where = f"{error.filename}: " if error.filename else ""
        return _fail(f"{where}{_MACHINE[error.errno]}", debug=debug)
    return 0


@contextmanager
def _noted_interrupts(received: list[int], words: Sequence[str]) -> Iterator[None]:
    """Note each Ctrl-C in the list, and raise KeyboardInterrupt; during an import, end at once."""
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    ):
        yield  # whoever called takes care of it, or it is ignored
        return

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)
        caller = frame
        while caller and not caller.f_code.co_filename.startswith("<frozen importlib"):
            caller = caller.f_back
        if caller:  # in an import, where an exception can abort a library: torch's C++ does
            sys.stdout.flush()
            os._exit(_interrupted(words, debug=False))
        signal.default_int_handler(number, frame)

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _interrupted(words: Sequence[str], *, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    # What libraries complain of while they are torn down is no news.
    sys.unraisablehook = lambda _: None
    threading.excepthook = lambda _: None
    if os.environ.get("RANK", "0") == "0":
        go_on = _GO_ON.get(words[0] if words else "", "")
        print(f"\nvidcsl: stopped{go_on}", file=sys.stderr, flush=True)
    return 128 + signal.SIGINT


_LESS_MEMORY = (
    "out of memory: set TRAIN.CHUNK (videos that pass the encoder at once), lower TRAIN.BATCH or "
    "EVALUATE.BATCH, or take a smaller encoder or clip (MODEL.WIDTH, MODEL.FRAME_SIZE, DATA.FRAMES)"
)


def _out_of_memory(error: BaseException) -> bool:
    """Whether torch, numpy or Python ran out of memory, of the GPU or of the machine."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    said = str(error)
    return "DefaultCPUAllocator" in said or "CUDA out of memory" in said


def _open_closed_streams() -> None:
    """Let output go nowhere where it is closed, and show names that a terminal cannot.

    A stream that is closed (`>&-`) is None, and the next file that is opened would take its number.
    """
    for name in ("stdin", "stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))  # noqa: SIM115
        elif name == "stdout" and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _parsed(words: Sequence[str]) -> argparse.Namespace:
    """The arguments. KEY VALUE pairs may follow other options, where argparse ignores them."""
    parser = command_parser(*words[:1])
    args, rest = parser.parse_known_args(words)
    if rest and ("overrides" not in args or any(word.startswith("--") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        args.overrides = [*args.overrides, *rest]
    for name, value in vars(args).items():  # a shell does so for `--root ~/x`, not for `--root=~/x`
        if isinstance(value, Path):
            setattr(args, name, value.expanduser())
        elif isinstance(value, list):
            setattr(args, name, [v.expanduser() if isinstance(v, Path) else v for v in value])
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
    # End torchrun's agent where it would start this process anew: the error would come again.
    restarts = int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", 0))
    if not passing and restarts > int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)):
        os.kill(os.getppid(), signal.SIGTERM)
    return 2


def command_parser(*called: str) -> argparse.ArgumentParser:
    """The parser of the command line.

    Args:
        called: the commands whose modules are imported to add their arguments. The other commands
            are listed by name only, so that `vidcsl --help` answers at once.
    """
    parser = argparse.ArgumentParser(
        prog="vidcsl",
        description="Pretrain video encoders by contrastive learning, and measure how robust "
        "they are.",
    )
    parser.add_argument("--version", action="version", version=f"vidcsl {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, (module, meaning) in COMMANDS.items():
        sub = commands.add_parser(name, help=meaning, description=meaning)
        if name in called:
            getattr(importlib.import_module(module), name)(sub)
            sub.add_argument("--debug", action="store_true", help="show tracebacks of errors")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
