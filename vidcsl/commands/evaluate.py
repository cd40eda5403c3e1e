"""`vidcsl evaluate`: the evaluations alone, from a checkpoint or from foreign weights."""

import argparse
from pathlib import Path

from vidcsl.commands.arguments import add_config, add_weights, with_weights
from vidcsl.config import load_config
from vidcsl.distributed import distributed_context
from vidcsl.pipelines.train import evaluate_model, headline

HELP = "evaluate and report, from a checkpoint or foreign weights"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Config, and checkpoint or weights."""
    add_config(parser)
    add_weights(parser)
    parser.add_argument("--checkpoint", type=Path, help="default: the newest in OUTPUT_DIR")


def run(args: argparse.Namespace) -> None:
    """Evaluate, and print the main numbers."""
    cfg = load_config(args.cfg, with_weights(args))
    with distributed_context(cfg.DEVICE) as distributed:
        folder = evaluate_model(
            cfg, distributed, checkpoint=args.checkpoint, foreign=bool(args.weights)
        )
        if distributed.is_main:
            print(headline(folder))
