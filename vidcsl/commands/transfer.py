"""`vidcsl transfer`: attacked clips tried on other models."""

import argparse
import json
from pathlib import Path

from vidcsl.distributed import distributed_context
from vidcsl.io import write_atomically
from vidcsl.pipelines.attack import transfer, transfer_table

HELP = "try attacked clips on other models: the transfer matrix"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The clips, the models, and where the numbers go."""
    parser.add_argument("clips", type=Path, nargs="+", help="folders that vidcsl attack wrote")
    parser.add_argument(
        "--runs", type=Path, nargs="+", required=True, help="folders of the runs to try them on"
    )
    parser.add_argument("--json", type=Path, help="write the numbers here, too")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))


def run(args: argparse.Namespace) -> None:
    """Print the matrix."""
    with distributed_context(args.device) as distributed:
        found = transfer(args.clips, args.runs, distributed)
        if distributed.is_main:
            print(transfer_table(found))  # first: where the file cannot be written, it is not lost
            if args.json:
                write_atomically(args.json, json.dumps(found, indent=2) + "\n")
