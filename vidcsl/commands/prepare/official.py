"""`vidcsl prepare ucf101 | hmdb51`: from the published split files, and archives."""

import argparse
from functools import partial
from pathlib import Path

from vidcsl.commands.prepare.kind import (
    Kind,
    add_allow_missing,
    add_classes,
    add_places,
    add_workers,
)
from vidcsl.data.prepare import archives
from vidcsl.data.prepare import datasets as official
from vidcsl.data.prepare.datasets import HMDB51, UCF101
from vidcsl.data.prepare.lists import ListReport


def _add_arguments(parser: argparse.ArgumentParser, *, dataset: official.Dataset) -> None:
    add_places(
        parser, out=f"data_lists/{dataset.name}", root="the folder that holds the class folders"
    )
    add_classes(parser)
    parser.add_argument("--splits", type=Path, required=True, help="the folder of the split files")
    parser.add_argument(
        "--archives",
        type=Path,
        nargs="+",
        default=(),
        help="unpack the videos of these into --root",
    )
    parser.add_argument(
        "--split-archive", type=Path, help="unpack the split files of this into --splits"
    )
    parser.add_argument(
        "--subset", action="store_true", help="the split files or the root hold fewer classes"
    )
    add_allow_missing(parser)
    add_workers(parser)


def _run(args: argparse.Namespace, *, dataset: official.Dataset) -> ListReport:
    unpack = partial(archives.unpack, workers=args.workers)
    if args.split_archive:
        unpack([args.split_archive], args.splits, selection=archives.SPLIT_FILES)
    if args.archives:
        unpack(args.archives, args.root, selection=archives.VIDEOS)
    return official.prepare_official(
        dataset,
        root=args.root,
        splits=args.splits,
        out=args.out,
        classes=args.classes,
        subset=args.subset,
        allow_missing=args.allow_missing,
    )


KINDS = {
    dataset.name: Kind(
        help=f"lists of {dataset.name} from its published split files (and archives)",
        add_arguments=partial(_add_arguments, dataset=dataset),
        run=partial(_run, dataset=dataset),
    )
    for dataset in (UCF101, HMDB51)
}
