"""`vidcsl prepare`: lists of videos and the videos themselves; also `tools/prepare_data.py`."""

import argparse

from vidcsl.commands.prepare import lists, official, synthetic, videos
from vidcsl.errors import UserError

HELP = "make lists of videos, and check, shrink or pack the videos"

KINDS = official.KINDS | lists.KINDS | videos.KINDS | synthetic.KINDS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add one sub-command for each kind of work."""
    kinds = parser.add_subparsers(metavar="KIND", required=True)
    for name, kind in KINDS.items():
        sub = kinds.add_parser(name, help=kind.help, description=kind.help)
        kind.add_arguments(sub)
        sub.set_defaults(prepare=kind.run)


def run(args: argparse.Namespace) -> None:
    """Do what the arguments name, and print what was done."""
    try:
        print(args.prepare(args))
    except KeyboardInterrupt:
        raise UserError("stopped; the same command goes on where it was") from None
