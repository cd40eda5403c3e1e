"""Arguments that several commands share."""

import argparse
import math
from collections.abc import Callable
from typing import TypeVar

from vidcsl.errors import UserError

Number = TypeVar("Number", int, float)


def add_config(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """`--cfg FILE KEY VALUE ...`."""
    parser.add_argument(
        "--cfg", required=required, help="config file, or the name of a shipped one"
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY VALUE", help="options that override the file's"
    )


def add_weights(parser: argparse.ArgumentParser) -> None:
    """`--weights FORMAT:PATH`."""
    parser.add_argument(
        "--weights",
        metavar="FORMAT:PATH",
        help="pretrained weights, as MODEL.WEIGHTS; formats: docs/models.md",
    )


def with_weights(args: argparse.Namespace) -> list[str]:
    """The overrides, `--weights` among them.

    Raises:
        UserError: a checkpoint is named as well.
    """
    if args.weights and getattr(args, "checkpoint", None):
        raise UserError("give --weights or --checkpoint: each says which model is meant")
    return [*args.overrides, *(["MODEL.WEIGHTS", args.weights] if args.weights else [])]


def at_least(least: Number) -> Callable[[str], Number]:
    """The type of an argument that is a finite number from `least` on, and of its kind."""
    kind = type(least)

    def number(text: str) -> Number:
        value = kind(text)
        if not least <= value < math.inf:
            raise argparse.ArgumentTypeError(f"{text} is not a number from {least} on")
        return value

    number.__name__ = {int: "whole number", float: "number"}[kind]  # argparse names it
    return number
