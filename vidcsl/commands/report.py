"""`vidcsl report`: the page of a run, written anew."""

import argparse
from pathlib import Path

from vidcsl.report.page import write_report

HELP = "write report.html of a run's folder anew"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The run's folder."""
    parser.add_argument("folder", type=Path)


def run(args: argparse.Namespace) -> None:
    """Write the report and print where it is."""
    print(write_report(args.folder))
