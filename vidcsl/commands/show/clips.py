"""`vidcsl show clips`: what the model is fed, as pictures; also `tools/visualize.py`."""

import argparse
from pathlib import Path

from vidcsl.commands.arguments import add_config
from vidcsl.config import load_config
from vidcsl.distributed import distributed_context
from vidcsl.pipelines.preview import PARTS, show
from vidcsl.pipelines.training import output_dir

HELP = "pictures of the clips that a config feeds, before and after augmentation"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Config, and which clips."""
    add_config(parser)
    parser.add_argument("--part", choices=PARTS, default="train", help="of the data (%(default)s)")
    parser.add_argument("--epoch", type=int, default=0, help="of training (%(default)s)")
    parser.add_argument("--samples", type=int, default=4, help="videos (%(default)s)")
    parser.add_argument("--out", type=Path, help="folder; default: clips in OUTPUT_DIR")


def run(args: argparse.Namespace) -> None:
    """Write the contact sheet and print where it is."""
    cfg = load_config(args.cfg, args.overrides)
    with distributed_context("cpu") as distributed:
        paths = show(
            cfg,
            distributed,
            part=args.part,
            epoch=args.epoch,
            samples=args.samples,
            folder=args.out or output_dir(cfg) / "clips",
        )
    print("\n".join(str(path) for path in paths))
