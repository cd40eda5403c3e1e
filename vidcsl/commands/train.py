"""`vidcsl train`: the main job from end to end."""

import argparse
import sys

from vidcsl.commands.arguments import add_config, add_weights, with_weights
from vidcsl.config import load_config
from vidcsl.engine import distributed
from vidcsl.engine.signals import Interrupted
from vidcsl.stages.run import headline, train_and_evaluate

HELP = "pretrain, evaluate and report"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Config and whether to continue."""
    add_config(parser)
    add_weights(parser)
    parser.add_argument("--resume", action="store_true", help="continue the run in OUTPUT_DIR")


def run(args: argparse.Namespace) -> None:
    """Train and evaluate; exit code 128 + signal number where a signal stopped it."""
    cfg = load_config(args.cfg, with_weights(args))
    with distributed.start(cfg.DEVICE) as world:
        try:
            folder = train_and_evaluate(cfg, world, resume=args.resume)
        except Interrupted as interruption:
            if world.is_main:
                print(f"vidcsl: {interruption}", file=sys.stderr)
            raise SystemExit(128 + interruption.number) from None
        if world.is_main:
            print(headline(folder))
