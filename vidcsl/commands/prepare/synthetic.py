"""`vidcsl prepare synthetic`: small labelled videos, rendered."""

import argparse
from pathlib import Path

from vidcsl.commands.prepare.kind import Kind, names
from vidcsl.data import synthetic

SIZES = {
    "--sources-per-class": (8, "appearances of each class; a quarter is for testing"),
    "--clips-per-source": (3, "clips of one source are one group"),
    "--frames": (48, "frames of a clip"),
    "--size": (64, "height and width in pixels"),
    "--fps": (25, "frames per second"),
    "--seed": (0, "draws everything"),
}


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--root", type=Path, required=True, help="the folder to make")
    parser.add_argument("--classes", type=names, default=synthetic.CLASSES, help="a,b,c")
    for option, (default, meaning) in SIZES.items():
        parser.add_argument(option, type=int, default=default, help=f"{meaning} (%(default)s)")


def _run(args: argparse.Namespace) -> str:
    lists = synthetic.generate(
        args.root,
        classes=args.classes,
        sources_per_class=args.sources_per_class,
        clips_per_source=args.clips_per_source,
        frames=args.frames,
        size=args.size,
        fps=args.fps,
        seed=args.seed,
    )
    return f"synthetic: lists {', '.join(str(path) for path in lists)}, root {args.root}"


KINDS = {"synthetic": Kind("make small videos whose motion is the class", _add_arguments, _run)}
