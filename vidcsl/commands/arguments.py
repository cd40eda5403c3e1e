"""Arguments that several commands share."""

import argparse
from collections.abc import Callable

from vidcsl.errors import UserError


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


def at_least(least: int) -> Callable[[str], int]:
    """The type of an argument that is a whole number from `least` on."""

    def whole_number(text: str) -> int:
        number = int(text)
        if number < least:
            raise argparse.ArgumentTypeError(f"{number} is less than {least}")
        return number

    return whole_number
