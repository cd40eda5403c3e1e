"""`vidcsl show`: what there is to choose from, what it costs, and what the model is fed."""

import argparse

from vidcsl.commands.show import clips, models

HELP = "show encoders and what they cost, or the clips that a config feeds"

THINGS = {"clips": clips, "models": models}
"""Modules with `HELP`, `add_arguments(parser)` and `run(args)`, as those of `vidcsl.commands`."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add one sub-command for each thing to be shown."""
    things = parser.add_subparsers(metavar="THING", required=True)
    for name, thing in THINGS.items():
        sub = things.add_parser(name, help=thing.HELP, description=thing.HELP)
        thing.add_arguments(sub)
        sub.set_defaults(show=thing.run)


def run(args: argparse.Namespace) -> None:
    """Show what the arguments name."""
    args.show(args)
