"""`vidcsl attack`: the attacked test clips of a model as files."""

import argparse
from pathlib import Path

from vidcsl.commands.arguments import add_config, add_weights, with_weights
from vidcsl.config import load_config
from vidcsl.distributed import distributed_context
from vidcsl.pipelines.attack import save_attacks

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
    with distributed_context(cfg.DEVICE) as distributed:
        model = {"checkpoint": args.checkpoint, "foreign": bool(args.weights)}
        places = save_attacks(cfg, distributed, folder=args.out, **model)
        if distributed.is_main:
            print("\n".join(str(place) for place in places))
