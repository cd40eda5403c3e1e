"""`vidcsl prepare folder`: lists of videos that are on disk."""

import argparse

from vidcsl.commands.prepare.kind import Kind, add_classes, add_places
from vidcsl.data.prepare import folder
from vidcsl.data.prepare.common import Report


def _add_folder(parser: argparse.ArgumentParser) -> None:
    add_places(parser, out="data_lists/folder", root="the folder that holds the class folders")
    add_classes(parser)
    parser.add_argument(
        "--test-share", type=float, default=0.25, help="held out of each class (%(default)s)"
    )
    parser.add_argument(
        "--group-pattern",
        default=folder.GROUP_PATTERN,
        help="regular expression; its first bracket is the group (%(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="draws the held-out groups")


def _folder(args: argparse.Namespace) -> Report:
    return folder.prepare(
        root=args.root,
        out=args.out,
        test_share=args.test_share,
        group_pattern=args.group_pattern,
        classes=args.classes,
        seed=args.seed,
    )


KINDS = {"folder": Kind("lists of any folder of videos", _add_folder, _folder)}
