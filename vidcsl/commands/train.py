"""`vidcsl train`, `evaluate`, `replay` and `export`: a model is made, measured, handed on."""

import argparse
import sys
from pathlib import Path

from vidcsl.commands.arguments import (
    FIRST_OPTIONS,
    add_config,
    add_launcher,
    add_model,
    add_weights,
    checkpoint_of,
    config_of,
    launch,
    overrides_of,
    refuse_job_options,
)
from vidcsl.errors import UserError


def train(parser: argparse.ArgumentParser) -> None:
    """Arguments of `vidcsl train`."""
    add_config(parser)
    add_weights(parser)
    parser.add_argument("--resume", action="store_true", help="continue the run in OUTPUT_DIR")
    add_launcher(parser)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = FIRST_OPTIONS
    parser.set_defaults(run=_train)


def _train(args: argparse.Namespace) -> None:
    from vidcsl.config import find_config
    from vidcsl.distributed import distributed_context
    from vidcsl.pipelines.train import headline, refuse_overwriting, train_and_evaluate
    from vidcsl.pipelines.training import check, output_dir
    from vidcsl.run_folder import RunFolder
    from vidcsl.training.monitor import Interrupted

    cfg = config_of(args)
    if args.launcher:
        check(cfg)  # a wrong config is found here and not in the queue
        folder = RunFolder(output_dir(cfg))
        if not args.resume:
            refuse_overwriting(folder)
        with folder.lock():
            pass  # raises where another process trains in this folder
        config = str(find_config(args.cfg).resolve())
        words = ["train", "--cfg", config, *overrides_of(args), "--resume"]
        launch([words], args, folder=folder.path / "jobs", name=cfg.NAME)
        return
    refuse_job_options(args)
    with distributed_context(cfg.DEVICE) as distributed:
        try:
            folder = train_and_evaluate(cfg, distributed, resume=args.resume)
        except Interrupted as interruption:
            if distributed.is_main:
                print(f"vidcsl: {interruption}", file=sys.stderr)
            raise SystemExit(128 + interruption.number) from None
        if distributed.is_main:
            print(headline(folder))


def evaluate(parser: argparse.ArgumentParser) -> None:
    """Arguments of `vidcsl evaluate`."""
    add_config(parser, required=False)
    add_model(parser)
    parser.set_defaults(run=_evaluate)


def _evaluate(args: argparse.Namespace) -> None:
    from vidcsl.distributed import distributed_context
    from vidcsl.pipelines.train import evaluate_model, headline

    cfg, checkpoint = config_of(args), checkpoint_of(args, args.checkpoint)
    with distributed_context(cfg.DEVICE) as distributed:
        folder = evaluate_model(cfg, distributed, checkpoint=checkpoint, foreign=bool(args.weights))
        if distributed.is_main:
            print(headline(folder))


def replay(parser: argparse.ArgumentParser) -> None:
    """Arguments of `vidcsl replay`."""
    parser.add_argument("file", type=Path, help="a kept step: replay/stepNNNNNN.json of a run")
    parser.add_argument(
        "--step", type=int, help="another step after the same checkpoint, counted from 0"
    )
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.set_defaults(run=_replay)


def _replay(args: argparse.Namespace) -> None:
    from vidcsl.distributed import distributed_context
    from vidcsl.pipelines.replay import replay_step

    with distributed_context(args.device) as distributed:
        lines = replay_step(args.file, distributed, step=args.step, device=args.device)
        print("\n".join(lines))


def export(parser: argparse.ArgumentParser) -> None:
    """Arguments of `vidcsl export`."""
    add_config(parser, required=False)
    add_model(parser)
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")
    parser.add_argument(
        "--program",
        action="append",
        choices=("torch_export", "torchscript"),
        default=[],
        help="also write a program that runs without vidcsl",
    )
    parser.add_argument("--push", metavar="OWNER/NAME", help="upload to the Hugging Face hub")
    parser.add_argument("--private", action="store_true", help="make the repository private")
    parser.set_defaults(run=_export)


def _export(args: argparse.Namespace) -> None:
    from vidcsl.hub import export_encoder, push
    from vidcsl.pipelines.model import build_encoder, load_weights_of
    from vidcsl.pipelines.training import output_dir
    from vidcsl.run_folder import RunFolder
    from vidcsl.training.checkpoint import list_checkpoints

    cfg = config_of(args)
    checkpoint = checkpoint_of(args, args.checkpoint)
    source = args.weights or (checkpoint and f"vidcsl:{checkpoint}")
    if not source:
        folder = RunFolder(output_dir(cfg)).checkpoints
        found = list_checkpoints(folder)
        if not found:
            raise UserError(
                f"no checkpoint in {folder}: train first, or give --checkpoint or --weights"
            )
        source = f"vidcsl:{found[-1]}"
    encoder = build_encoder(cfg)
    for note in load_weights_of(cfg, encoder, source=source):
        print(note)
    for path in export_encoder(encoder, cfg, args.out, programs=args.program):
        print(path)
    if args.push:
        print(push(args.out, args.push, private=args.private))
