"""`vidcsl report` and `vidcsl compare`: pages and tables of runs that have ended."""

import argparse
from pathlib import Path


def report(parser: argparse.ArgumentParser) -> None:
    """Arguments of `vidcsl report`."""
    parser.add_argument("folder", type=Path, help="the folder of a run")
    parser.set_defaults(run=_report)


def _report(args: argparse.Namespace) -> None:
    from vidcsl.report.page import write_report

    print(write_report(args.folder))


def compare(parser: argparse.ArgumentParser) -> None:
    """Arguments of `vidcsl compare`."""
    parser.add_argument(
        "folders",
        type=Path,
        nargs="+",
        help="run folders; runs of one name that were trained alike are its seeds",
    )
    parser.add_argument(
        "--baseline", default="", help="name of the run that the others are tested against"
    )
    parser.add_argument(
        "--reference",
        default=(),
        nargs="+",
        help="names of runs, the main one first: how much of the gap from the baseline to them do "
        "the others close?",
    )
    parser.add_argument("--output", type=Path, help="folder for study.json, study.md, study.html")
    parser.set_defaults(run=_compare)


def _compare(args: argparse.Namespace) -> None:
    from vidcsl.studies.comparison import compare as compared
    from vidcsl.studies.page import markdown, write_study

    document = compared(args.folders, baseline=args.baseline, references=args.reference)
    if args.output:
        print(*write_study(document, args.output), sep="\n")
    else:
        print(markdown(document))
