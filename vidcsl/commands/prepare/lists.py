"""`vidcsl prepare kinetics | ssv2 | folder | convert`: lists of videos that are on disk."""

import argparse
from pathlib import Path

from vidcsl.commands.prepare.kind import Kind, add_allow_missing, add_classes, add_places
from vidcsl.data.prepare import convert
from vidcsl.data.prepare import datasets as kinetics
from vidcsl.data.prepare import datasets as ssv2
from vidcsl.data.prepare import lists as folder
from vidcsl.data.prepare.lists import GROUP_PATTERN, ListReport


def _add_folder(parser: argparse.ArgumentParser) -> None:
    add_places(parser, out="data_lists/folder", root="the folder that holds the class folders")
    add_classes(parser)
    parser.add_argument(
        "--test-share", type=float, default=0.25, help="held out of each class (%(default)s)"
    )
    _add_group_pattern(parser)
    parser.add_argument("--seed", type=int, default=0, help="draws the held-out groups")


def _add_group_pattern(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--group-pattern",
        default=GROUP_PATTERN,
        help="regular expression; its first bracket is the group (%(default)s)",
    )


def _folder(args: argparse.Namespace) -> ListReport:
    return folder.prepare_folder(
        root=args.root,
        out=args.out,
        test_share=args.test_share,
        group_pattern=args.group_pattern,
        classes=args.classes,
        seed=args.seed,
    )


def _add_annotated(parser: argparse.ArgumentParser, *, name: str) -> None:
    add_places(parser, out=f"data_lists/{name}", root="the folder of the videos, however deep")
    add_classes(parser)
    parser.add_argument(
        "--annotations", type=Path, nargs="+", required=True, help="the published files of splits"
    )
    add_allow_missing(parser)


def _add_kinetics(parser: argparse.ArgumentParser) -> None:
    _add_annotated(parser, name="kinetics")


def _kinetics(args: argparse.Namespace) -> ListReport:
    return kinetics.prepare_kinetics(
        root=args.root,
        annotations=args.annotations,
        out=args.out,
        classes=args.classes,
        allow_missing=args.allow_missing,
    )


def _add_ssv2(parser: argparse.ArgumentParser) -> None:
    _add_annotated(parser, name="ssv2")
    parser.add_argument("--labels", type=Path, required=True, help="labels.json")


def _ssv2(args: argparse.Namespace) -> ListReport:
    return ssv2.prepare_ssv2(
        root=args.root,
        labels=args.labels,
        annotations=args.annotations,
        out=args.out,
        classes=args.classes,
        allow_missing=args.allow_missing,
    )


def _add_convert(parser: argparse.ArgumentParser) -> None:
    add_places(parser, out="data_lists/converted", root="the folder that paths are relative to")
    parser.add_argument("--lists", type=Path, nargs="+", required=True, help="the lists to read")
    parser.add_argument("--form", choices=convert.FORMS, required=True)
    parser.add_argument("--separator", default=" ", help="between the columns (a space)")
    parser.add_argument(
        "--class-names", type=Path, help="one a line by number, or JSON {name: number}"
    )
    _add_group_pattern(parser)
    add_allow_missing(parser)


def _convert(args: argparse.Namespace) -> ListReport:
    return convert.prepare(
        root=args.root,
        lists=args.lists,
        out=args.out,
        form=args.form,
        separator=args.separator.replace("\\t", "\t"),
        class_names=args.class_names,
        group_pattern=args.group_pattern,
        allow_missing=args.allow_missing,
    )


KINDS = {
    "kinetics": Kind("lists of Kinetics from its annotations", _add_kinetics, _kinetics),
    "ssv2": Kind("lists of Something-Something V2 from its annotations", _add_ssv2, _ssv2),
    "folder": Kind("lists of any folder of videos", _add_folder, _folder),
    "convert": Kind("lists made for PySlowFast or mmaction2", _add_convert, _convert),
}
