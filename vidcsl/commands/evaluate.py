"""`vidcsl evaluate`: the evaluations alone, from a checkpoint or from foreign weights."""

import argparse
from pathlib import Path

from vidcsl.commands.arguments import add_config, add_weights, with_weights
from vidcsl.config import load_config
from vidcsl.engine import distributed
from vidcsl.stages.run import evaluate_model, headline

HELP = "evaluate and report, from a checkpoint or foreign weights"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Config, and checkpoint or weights."""
    add_config(parser)
    add_weights(parser)
    parser.add_argument("--checkpoint", type=Path, help="default: the newest in OUTPUT_DIR")


def run(args: argparse.Namespace) -> None:
    """Evaluate, and print the main numbers."""
    cfg = load_config(args.cfg, with_weights(args))
    with distributed.start(cfg.DEVICE) as world:
        folder = evaluate_model(cfg, world, checkpoint=args.checkpoint, foreign=bool(args.weights))
        if world.is_main:
            print(headline(folder))
