"""`vidcsl compare`: several runs side by side, and the gap closed."""

import argparse
from pathlib import Path

from vidcsl.report.compare import compare

HELP = "a table of several runs, and the gap closed"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The runs, and which is the baseline and which the reference."""
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--baseline", required=True, help="name of the plain contrastive run")
    parser.add_argument("--reference", required=True, help="name of the run to catch up with")


def run(args: argparse.Namespace) -> None:
    """Print the table."""
    print(compare(args.folders, baseline=args.baseline, reference=args.reference))
