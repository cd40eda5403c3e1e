"""`vidcsl attack`: the attacked test clips of a model as files."""

import argparse
from pathlib import Path

from vidcsl.commands.arguments import add_config, add_weights, with_weights
from vidcsl.config import load_config
from vidcsl.engine import distributed
from vidcsl.stages.save_attacks import save_attacks

HELP = "attack a model, and keep the attacked clips without loss"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Config, checkpoint or weights, and where the clips go."""
    add_config(parser)
    add_weights(parser)
    parser.add_argument("--checkpoint", type=Path, help="default: the newest in OUTPUT_DIR")
    parser.add_argument(
        "--out", type=Path, required=True, help="folder of the clips; a stopped export goes on"
    )


def run(args: argparse.Namespace) -> None:
    """Write the clips, and print where they are."""
    cfg = load_config(args.cfg, with_weights(args))
    with distributed.start(cfg.DEVICE) as world:
        model = {"checkpoint": args.checkpoint, "foreign": bool(args.weights)}
        places = save_attacks(cfg, world, folder=args.out, **model)
        if world.is_main:
            print("\n".join(str(place) for place in places))
