"""`vidcsl doctor`: what this installation has and lacks."""

import argparse

from vidcsl.doctor import examine, report

HELP = "list versions, video readers, codecs and devices, and what is missing"


def add_arguments(_parser: argparse.ArgumentParser) -> None:
    """None."""


def run(_args: argparse.Namespace) -> None:
    """Print what was found."""
    print(report(examine()))
