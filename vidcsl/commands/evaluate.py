"""`vidcsl evaluate`: the evaluations alone, from a checkpoint."""

import argparse
from pathlib import Path

from vidcsl.commands.arguments import add_config
from vidcsl.config import load_config
from vidcsl.engine import distributed
from vidcsl.stages.run import evaluate_checkpoint, headline

HELP = "evaluate and report, from a checkpoint"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Config and checkpoint."""
    add_config(parser)
    parser.add_argument("--checkpoint", type=Path, help="default: the newest in OUTPUT_DIR")


def run(args: argparse.Namespace) -> None:
    """Evaluate, and print the main numbers."""
    cfg = load_config(args.cfg, args.overrides)
    with distributed.start(cfg.DEVICE) as world:
        folder = evaluate_checkpoint(cfg, world, checkpoint=args.checkpoint)
        if world.is_main:
            print(headline(folder))
