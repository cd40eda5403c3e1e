"""`vidcsl train`: the main job from end to end."""

import argparse
import sys

from fvcore.common.config import CfgNode

from vidcsl.commands.arguments import add_config, add_weights, with_weights
from vidcsl.commands.launching import add_launcher, launch, refuse_unlaunched
from vidcsl.config import find_config, load_config
from vidcsl.distributed import distributed_context
from vidcsl.pipelines.context import refuse_overwriting
from vidcsl.pipelines.train import headline, train_and_evaluate
from vidcsl.pipelines.training import check, output_dir
from vidcsl.run_folder import RunFolder
from vidcsl.training.monitor import Interrupted

HELP = "pretrain, evaluate and report"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Config, whether to continue, and who runs it."""
    add_config(parser)
    add_weights(parser)
    parser.add_argument("--resume", action="store_true", help="continue the run in OUTPUT_DIR")
    add_launcher(parser)


def run(args: argparse.Namespace) -> None:
    """Train and evaluate; exit code 128 + signal number where a signal stopped it."""
    cfg = load_config(args.cfg, with_weights(args))
    if args.launcher:
        _launch(cfg, args)
        return
    refuse_unlaunched(args)
    with distributed_context(cfg.DEVICE) as distributed:
        try:
            folder = train_and_evaluate(cfg, distributed, resume=args.resume)
        except Interrupted as interruption:
            if distributed.is_main:
                print(f"vidcsl: {interruption}", file=sys.stderr)
            raise SystemExit(128 + interruption.number) from None
        if distributed.is_main:
            print(headline(folder))


def _launch(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Submit the same command; a wrong config is found here and not in the queue."""
    check(cfg)
    folder = RunFolder(output_dir(cfg))
    if not args.resume:
        refuse_overwriting(folder)
    with folder.held():
        pass  # nobody trains there
    config = str(find_config(args.cfg).resolve())
    words = ["train", "--cfg", config, *with_weights(args), "--resume"]
    launch([words], args, folder=folder.path / "jobs", name=cfg.NAME)
