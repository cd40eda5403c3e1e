"""`vidcsl neighbours`: what a teacher flags, seen before training."""

import argparse
from pathlib import Path

from vidcsl.commands.arguments import add_config, at_least, config_of


def neighbours(parser: argparse.ArgumentParser) -> None:
    """The config whose FALSE_NEGATIVES options are tried."""
    add_config(parser)
    parser.add_argument(
        "--pairs", type=at_least(0), default=8, help="pairs to show of each kind (%(default)s)"
    )
    parser.add_argument("--out", type=Path, help="folder; default: neighbours in OUTPUT_DIR")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    from vidcsl.distributed import distributed_context
    from vidcsl.pipelines.neighbours import measure_neighbours
    from vidcsl.pipelines.training import output_dir

    cfg = config_of(args)
    with distributed_context(cfg.DEVICE) as distributed:
        folder = args.out or output_dir(cfg) / "neighbours"
        lines = measure_neighbours(cfg, distributed, folder=folder, examples=args.pairs)
    print("\n".join(lines))
