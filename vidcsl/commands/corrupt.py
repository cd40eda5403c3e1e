"""`vidcsl corrupt`: models under corruption, or the corrupted test set as files."""

import argparse
from pathlib import Path

from vidcsl.commands.arguments import add_config, add_weights, with_weights
from vidcsl.config import load_config
from vidcsl.distributed import distributed_context
from vidcsl.errors import UserError
from vidcsl.pipelines.corrupt import corrupt_checkpoints, export_corrupted
from vidcsl.report.page import compare_corruptions

HELP = "models under corruption side by side, or the corrupted test set as files"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Config, checkpoints or weights, and where to export to."""
    add_config(parser)
    add_weights(parser)
    parser.add_argument(
        "--checkpoint",
        type=Path,
        action="append",
        default=[],
        help="may be given several times, for a table; default: the newest in OUTPUT_DIR",
    )
    parser.add_argument(
        "--export", type=Path, metavar="DIR", help="write the corrupted test videos here instead"
    )


def run(args: argparse.Namespace) -> None:
    """Print the table, or where the lists of the exported videos are."""
    if args.export and (args.checkpoint or args.weights):
        raise UserError("--export writes videos, which no --checkpoint or --weights changes")
    cfg = load_config(args.cfg, with_weights(args))
    with distributed_context(cfg.DEVICE) as distributed:
        if args.export:
            lists = export_corrupted(cfg, distributed, folder=args.export)
            text = f"{len(lists)} lists of videos in {args.export}, the first {lists[0]}"
        else:
            models = {"checkpoints": args.checkpoint, "foreign": bool(args.weights)}
            text = compare_corruptions(corrupt_checkpoints(cfg, distributed, **models))
        if distributed.is_main:
            print(text)
