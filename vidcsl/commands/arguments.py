"""Arguments that several commands share."""

import argparse


def add_config(parser: argparse.ArgumentParser) -> None:
    """`--cfg FILE KEY VALUE ...`."""
    parser.add_argument("--cfg", required=True, help="config file (YAML)")
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY VALUE", help="options that override the file's"
    )
