"""`vidcsl attack`, `transfer`, `corrupt` and `gallery`: models and videos under perturbation."""

import argparse
import json
from pathlib import Path

from vidcsl.commands.arguments import add_config, add_model, checkpoint_of, config_of
from vidcsl.errors import UserError


def attack(parser: argparse.ArgumentParser) -> None:
    """Arguments of `vidcsl attack`."""
    add_config(parser, required=False)
    add_model(parser)
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        help="folder of the attacked clips; the same command resumes a stopped export",
    )
    parser.set_defaults(run=_attack)


def _attack(args: argparse.Namespace) -> None:
    from vidcsl.distributed import distributed_context
    from vidcsl.pipelines.attack import save_attacks

    cfg, checkpoint = config_of(args), checkpoint_of(args, args.checkpoint)
    with distributed_context(cfg.DEVICE) as distributed:
        places = save_attacks(
            cfg,
            distributed,
            folder=args.out,
            checkpoint=checkpoint,
            foreign=bool(args.weights),
        )
        if distributed.is_main:
            print("\n".join(str(place) for place in places))


def transfer(parser: argparse.ArgumentParser) -> None:
    """Arguments of `vidcsl transfer`."""
    parser.add_argument("clips", type=Path, nargs="+", help="folders that `vidcsl attack` wrote")
    parser.add_argument(
        "--runs", type=Path, nargs="+", required=True, help="run folders of the models to test"
    )
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.set_defaults(run=_transfer)


def _transfer(args: argparse.Namespace) -> None:
    from vidcsl.distributed import distributed_context
    from vidcsl.io import write_atomically
    from vidcsl.pipelines.attack import transfer as transfer_clips
    from vidcsl.pipelines.attack import transfer_table

    with distributed_context(args.device) as distributed:
        found = transfer_clips(args.clips, args.runs, distributed)
        if distributed.is_main:
            print(transfer_table(found))  # first: it is kept even where the file cannot be written
            if args.json:
                write_atomically(args.json, json.dumps(found, indent=2) + "\n")


def corrupt(parser: argparse.ArgumentParser) -> None:
    """Arguments of `vidcsl corrupt`."""
    add_config(parser, required=False)
    add_model(parser, several=True)
    parser.add_argument(
        "--export",
        type=Path,
        metavar="DIR",
        help="folder for the corrupted test videos; writes them instead of evaluating",
    )
    parser.set_defaults(run=_corrupt)


def _corrupt(args: argparse.Namespace) -> None:
    from vidcsl.distributed import distributed_context
    from vidcsl.pipelines.corrupt import corrupt_checkpoints, export_corrupted
    from vidcsl.report.summary import compare_corruptions

    if args.export and (args.checkpoint or args.weights):
        raise UserError("--export writes videos: it takes no --checkpoint and no --weights")
    cfg = config_of(args)
    found = [checkpoint_of(args, each) for each in args.checkpoint]
    checkpoints = [each for each in found if each is not None]
    with distributed_context(cfg.DEVICE) as distributed:
        if args.export:
            lists = export_corrupted(cfg, distributed, folder=args.export)
            text = f"{len(lists)} lists of videos in {args.export}, the first {lists[0]}"
        else:
            models = corrupt_checkpoints(
                cfg, distributed, checkpoints=checkpoints, foreign=bool(args.weights)
            )
            text = compare_corruptions(models)
        if distributed.is_main:
            print(text)


def gallery(parser: argparse.ArgumentParser) -> None:
    """Arguments of `vidcsl gallery`."""
    parser.add_argument("video", type=Path, help="a video file")
    parser.add_argument("--out", type=Path, default=Path("gallery.html"), help="(%(default)s)")
    parser.add_argument(
        "--names", nargs="+", default=["all"], help="corruptions, suites (P, C, V) or all"
    )
    sizes = {
        "--frames": (16, "number of frames, from the middle of the video"),
        "--stride": (2, "step between frames"),
        "--side": (96, "short side in pixels"),
        "--seed": (0, "seed of every random choice"),
    }
    for option, (default, meaning) in sizes.items():
        parser.add_argument(option, type=int, default=default, help=f"{meaning} (%(default)s)")
    parser.set_defaults(run=_gallery)


def _gallery(args: argparse.Namespace) -> None:
    from vidcsl.pipelines.preview import show_corruptions

    show_corruptions(
        args.video,
        out=args.out,
        names=args.names,
        frames=args.frames,
        stride=args.stride,
        side=args.side,
        seed=args.seed,
    )
    print(args.out)
