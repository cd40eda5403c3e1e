"""What a sub-command of `vidcsl prepare` is, and the arguments that several of them share."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vidcsl.data.prepare.jobs import default_workers


@dataclass(frozen=True)
class Kind:
    """One sub-command: a line of help, its arguments, and what it does; `run` returns a report."""

    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], object]


def add_places(parser: argparse.ArgumentParser, *, out: str, root: str) -> None:
    """`--root` and `--out`."""
    parser.add_argument("--root", type=Path, required=True, help=root)
    parser.add_argument(
        "--out", type=Path, default=Path(out), help="where the lists go (%(default)s)"
    )


def add_classes(parser: argparse.ArgumentParser) -> None:
    """`--classes a,b,c`."""
    parser.add_argument("--classes", type=names, default=(), help="keep these: a,b,c")


def add_allow_missing(parser: argparse.ArgumentParser) -> None:
    """`--allow-missing`."""
    parser.add_argument(
        "--allow-missing", action="store_true", help="leave out the videos that are not there"
    )


def add_workers(parser: argparse.ArgumentParser) -> None:
    """`--workers`."""
    parser.add_argument(
        "--workers", type=int, default=default_workers(), help="processes (%(default)s: the cores)"
    )


def names(text: str) -> tuple[str, ...]:
    """`a,b,c` as names."""
    return tuple(name.strip() for name in text.split(",") if name.strip())
