"""`vidcsl prepare`: lists of videos; also `tools/prepare_data.py`."""

import argparse
from pathlib import Path

from vidcsl.data import synthetic
from vidcsl.data.prepare import folder, hmdb51, ucf101
from vidcsl.data.prepare.common import Report

HELP = "make lists of videos"

OFFICIAL = {"ucf101": ucf101.prepare, "hmdb51": hmdb51.prepare}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add one sub-command for each kind of data."""
    kinds = parser.add_subparsers(dest="dataset", required=True)
    for name in OFFICIAL:
        official = kinds.add_parser(name, help=f"lists of {name} from its published split files")
        _add_common(official, out=f"data_lists/{name}")
        official.add_argument("--splits", required=True, help="the folder of the split files")
        official.add_argument(
            "--subset", action="store_true", help="the split files or the root hold fewer classes"
        )
        official.add_argument(
            "--allow-missing", action="store_true", help="leave out the videos that are not there"
        )
        official.set_defaults(prepare=_official)
    _add_folder(kinds.add_parser("folder", help="lists of any folder of videos"))
    _add_synthetic(
        kinds.add_parser("synthetic", help="make small videos whose motion is the class")
    )


def run(args: argparse.Namespace) -> None:
    """Prepare the data that the arguments name, and print what was done."""
    print(args.prepare(args))


def _add_common(parser: argparse.ArgumentParser, *, out: str) -> None:
    parser.add_argument("--root", required=True, help="the folder that holds the class folders")
    parser.add_argument("--out", default=out, help="where the lists go (%(default)s)")
    parser.add_argument("--classes", type=_names, default=(), help="keep these: a,b,c")


def _add_folder(parser: argparse.ArgumentParser) -> None:
    _add_common(parser, out="data_lists/folder")
    parser.add_argument(
        "--test-share", type=float, default=0.25, help="held out of each class (%(default)s)"
    )
    parser.add_argument(
        "--group-pattern",
        default=folder.GROUP_PATTERN,
        help="regular expression; its first bracket is the group (%(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="draws the held-out groups")
    parser.set_defaults(prepare=_folder)


def _add_synthetic(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--root", required=True, help="the folder to make")
    parser.add_argument("--classes", type=_names, default=synthetic.CLASSES, help="a,b,c")
    sizes = {
        "--sources-per-class": (8, "appearances of each class; a quarter is for testing"),
        "--clips-per-source": (3, "clips of one source are one group"),
        "--frames": (48, "frames of a clip"),
        "--size": (64, "height and width in pixels"),
        "--fps": (25, "frames per second"),
        "--seed": (0, "draws everything"),
    }
    for option, (default, meaning) in sizes.items():
        parser.add_argument(option, type=int, default=default, help=f"{meaning} (%(default)s)")
    parser.set_defaults(prepare=_synthetic)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _official(args: argparse.Namespace) -> Report:
    return OFFICIAL[args.dataset](
        root=args.root,
        splits=args.splits,
        out=args.out,
        classes=args.classes,
        subset=args.subset,
        allow_missing=args.allow_missing,
    )


def _folder(args: argparse.Namespace) -> Report:
    return folder.prepare(
        root=args.root,
        out=args.out,
        test_share=args.test_share,
        group_pattern=args.group_pattern,
        classes=args.classes,
        seed=args.seed,
    )


def _synthetic(args: argparse.Namespace) -> str:
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
    return f"synthetic: lists {', '.join(str(path) for path in lists)}, root {Path(args.root)}"
