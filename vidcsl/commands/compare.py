"""`vidcsl compare`: finished runs side by side, and the gap closed."""

import argparse
from pathlib import Path

from vidcsl.studies.analysis import read_arms, summarise
from vidcsl.studies.page import markdown, write_study

HELP = "tables of several runs, and the gap closed"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The runs, and which is the baseline and which the references."""
    parser.add_argument("folders", type=Path, nargs="+", help="runs; those of one name are seeds")
    parser.add_argument("--baseline", required=True, help="name of the plain contrastive run")
    parser.add_argument(
        "--reference", required=True, nargs="+", help="names of the runs to catch up with"
    )
    parser.add_argument("--output", type=Path, help="folder for study.json, study.md, study.html")


def run(args: argparse.Namespace) -> None:
    """Print the tables, or write them."""
    summary = summarise(read_arms(args.folders), baseline=args.baseline, references=args.reference)
    document = {"name": "Comparison", "question": "", "notes": [], "settings": {"": summary}}
    if args.output:
        print(*write_study(document, args.output), sep="\n")
    else:
        print(markdown(document))
