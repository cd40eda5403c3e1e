"""`vidcsl gallery`: every corruption at every severity on a video of one's own, as a page."""

import argparse
from pathlib import Path

from vidcsl.pipelines.preview import show_corruptions

HELP = "a page that shows corruptions on a video, moving, each at each severity"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The video, which corruptions, and how large."""
    parser.add_argument("video", type=Path, help="a video file")
    parser.add_argument("--out", type=Path, default=Path("gallery.html"), help="(%(default)s)")
    parser.add_argument(
        "--names", nargs="+", default=["all"], help="corruptions, suites (P, C, V) or all"
    )
    sizes = {
        "--frames": (16, "of the clip from the middle of the video"),
        "--stride": (2, "step between them"),
        "--side": (96, "short side, pixels"),
        "--seed": (0, "of all chance"),
    }
    for option, (default, meaning) in sizes.items():
        parser.add_argument(option, type=int, default=default, help=f"{meaning} (%(default)s)")


def run(args: argparse.Namespace) -> None:
    """Write the page and print where it is."""
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
