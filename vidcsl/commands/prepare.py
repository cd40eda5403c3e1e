"""`vidcsl prepare`: make lists of videos, and check, shrink or pack the videos.

Each kind of work is one function that adds its arguments and one that runs it.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

from vidcsl.commands.arguments import at_least, comma_separated


def prepare(parser: argparse.ArgumentParser) -> None:
    """Sub-commands of `vidcsl prepare`."""
    kinds = parser.add_subparsers(metavar="KIND", required=True)
    for name, (add_arguments, work, meaning) in KINDS.items():
        sub = kinds.add_parser(name, help=meaning, description=meaning)
        add_arguments(sub)
        sub.set_defaults(run=lambda args: print(args.work(args)), work=work, kind=name)


def _add_root_and_out(parser: argparse.ArgumentParser, *, root: str, out: str) -> None:
    parser.add_argument("--root", type=Path, required=True, help=root)
    parser.add_argument(
        "--out", type=Path, default=Path(out), help="folder of the new lists (%(default)s)"
    )


def _add_classes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--classes", type=comma_separated, default=(), help="keep only these classes: a,b,c"
    )


def _add_allow_missing(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--allow-missing", action="store_true", help="leave out videos that are not on disk"
    )


def _add_workers(parser: argparse.ArgumentParser) -> None:
    from vidcsl.data.prepare.jobs import default_workers

    parser.add_argument(
        "--workers",
        type=int,
        default=default_workers(),
        help="processes (%(default)s: one per core)",
    )


def _add_group_pattern(parser: argparse.ArgumentParser) -> None:
    from vidcsl.data.prepare.lists import GROUP_PATTERN

    parser.add_argument(
        "--group-pattern",
        default=GROUP_PATTERN,
        help="regular expression; its first bracket is the group (%(default)s)",
    )


# Lists from the published split files of UCF101 and HMDB51.


def _add_official(parser: argparse.ArgumentParser) -> None:
    name = parser.prog.split()[-1]
    _add_root_and_out(
        parser, root="the folder that holds the class folders", out=f"data_lists/{name}"
    )
    _add_classes(parser)
    parser.add_argument("--splits", type=Path, required=True, help="the folder of the split files")
    parser.add_argument(
        "--archives",
        type=Path,
        nargs="+",
        default=(),
        help="unpack the videos of these archives into --root",
    )
    parser.add_argument(
        "--split-archive", type=Path, help="unpack the split files of this archive into --splits"
    )
    parser.add_argument(
        "--subset", action="store_true", help="accept split files or a root with fewer classes"
    )
    _add_allow_missing(parser)
    _add_workers(parser)


def _official(args: argparse.Namespace) -> object:
    from vidcsl.data.prepare import archives
    from vidcsl.data.prepare.datasets import prepare_hmdb51, prepare_ucf101

    if args.split_archive:
        archives.unpack(
            [args.split_archive], args.splits, selection=archives.SPLIT_FILES, workers=args.workers
        )
    if args.archives:
        archives.unpack(args.archives, args.root, selection=archives.VIDEOS, workers=args.workers)
    make_lists = {"ucf101": prepare_ucf101, "hmdb51": prepare_hmdb51}[args.kind]
    return make_lists(
        root=args.root,
        splits=args.splits,
        out=args.out,
        classes=args.classes,
        subset=args.subset,
        allow_missing=args.allow_missing,
    )


# Lists from published annotations, from folders, and from other toolkits' lists.


def _add_annotated(parser: argparse.ArgumentParser) -> None:
    name = parser.prog.split()[-1]
    _add_root_and_out(
        parser, root="the folder that holds the videos, at any depth", out=f"data_lists/{name}"
    )
    _add_classes(parser)
    parser.add_argument(
        "--annotations",
        type=Path,
        nargs="+",
        required=True,
        help="the published annotation files, one per split",
    )
    _add_allow_missing(parser)


def _kinetics(args: argparse.Namespace) -> object:
    from vidcsl.data.prepare.datasets import prepare_kinetics

    return prepare_kinetics(
        root=args.root,
        annotations=args.annotations,
        out=args.out,
        classes=args.classes,
        allow_missing=args.allow_missing,
    )


def _add_ssv2(parser: argparse.ArgumentParser) -> None:
    _add_annotated(parser)
    parser.add_argument("--labels", type=Path, required=True, help="labels.json")


def _ssv2(args: argparse.Namespace) -> object:
    from vidcsl.data.prepare.datasets import prepare_ssv2

    return prepare_ssv2(
        root=args.root,
        labels=args.labels,
        annotations=args.annotations,
        out=args.out,
        classes=args.classes,
        allow_missing=args.allow_missing,
    )


def _add_folder(parser: argparse.ArgumentParser) -> None:
    _add_root_and_out(
        parser,
        root="the folder that holds the class folders, folders train and test (or val) that hold "
        "these, or the videos themselves",
        out="data_lists/folder",
    )
    parser.add_argument(
        "--test-root", type=Path, help="a folder of the test videos, where it is another one"
    )
    parser.add_argument(
        "--labels",
        type=Path,
        metavar="TABLE",
        help="a CSV or TSV with columns video and class (also group, split), for videos that are "
        "in no class folders",
    )
    parser.add_argument(
        "--class-level",
        type=at_least(0),
        default=0,
        help="which folder of a path is the class, from 1; 0: all of them, as sport/stroke "
        "(%(default)s)",
    )
    _add_classes(parser)
    parser.add_argument(
        "--test-share",
        type=float,
        default=0.25,
        help="fraction of each class that is held out for testing (%(default)s)",
    )
    _add_group_pattern(parser)
    parser.add_argument("--seed", type=int, default=0, help="seed of the held-out groups")


def _folder(args: argparse.Namespace) -> object:
    from vidcsl.data.prepare.folder import prepare_folder

    return prepare_folder(
        root=args.root,
        out=args.out,
        test_root=args.test_root,
        labels=args.labels,
        class_level=args.class_level,
        test_share=args.test_share,
        group_pattern=args.group_pattern,
        classes=args.classes,
        seed=args.seed,
    )


def _add_convert(parser: argparse.ArgumentParser) -> None:
    from vidcsl.data.prepare.convert import FORMS

    _add_root_and_out(
        parser, root="the folder that paths are relative to", out="data_lists/converted"
    )
    parser.add_argument("--lists", type=Path, nargs="+", required=True, help="the lists to read")
    parser.add_argument("--form", choices=FORMS, required=True, help="the toolkit's format")
    parser.add_argument("--separator", default=" ", help="between columns (default: a space)")
    parser.add_argument(
        "--class-names", type=Path, help="class names: one per line, or JSON {name: number}"
    )
    _add_group_pattern(parser)
    _add_allow_missing(parser)


def _convert(args: argparse.Namespace) -> object:
    from vidcsl.data.prepare import convert

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


# The videos that lists name: decoded, copied, packed.


def _add_listed(parser: argparse.ArgumentParser, *, out: str) -> None:
    _add_root_and_out(parser, root="the folder that the lists' paths are relative to", out=out)
    parser.add_argument("--lists", type=Path, nargs="+", required=True, help="lists of videos")
    _add_workers(parser)


def _add_timeout(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--timeout", type=float, default=600, help="seconds allowed per video (%(default)s)"
    )


def _add_scan(parser: argparse.ArgumentParser) -> None:
    from vidcsl.data.readers import READERS

    _add_listed(parser, out="data_lists/scanned")
    _add_timeout(parser)
    parser.add_argument(
        "--reader",
        choices=tuple(READERS),
        default="auto",
        help="the reader that training will use, DATA.READER (%(default)s)",
    )


def _scan(args: argparse.Namespace) -> object:
    from vidcsl.data.prepare.scan import scan

    return scan(
        root=args.root,
        lists=args.lists,
        out=args.out,
        reader=args.reader,
        workers=args.workers,
        timeout=args.timeout,
    )


def _add_transcode(parser: argparse.ArgumentParser) -> None:
    from vidcsl.data.prepare.transcode import Settings

    settings = Settings()
    _add_listed(parser, out="data_lists/transcoded")
    _add_timeout(parser)
    parser.add_argument("--out-root", type=Path, required=True, help="the folder of the copies")
    parser.add_argument(
        "--short-side",
        type=int,
        default=settings.short_side,
        help="short side in pixels; smaller videos keep their size (%(default)s)",
    )
    parser.add_argument(
        "--gop", type=int, default=settings.gop, help="frames between keyframes (%(default)s)"
    )
    parser.add_argument(
        "--crf", type=int, default=settings.crf, help="quality; 0 is lossless (%(default)s)"
    )
    parser.add_argument("--preset", default=settings.preset, help="x264 preset (%(default)s)")
    parser.add_argument(
        "--allow-damaged",
        action="store_true",
        help="leave out videos that cannot be decoded completely",
    )


def _transcode(args: argparse.Namespace) -> object:
    from vidcsl.data.prepare.transcode import Settings, transcode

    return transcode(
        root=args.root,
        lists=args.lists,
        out_root=args.out_root,
        out=args.out,
        settings=Settings(
            short_side=args.short_side, gop=args.gop, crf=args.crf, preset=args.preset
        ),
        allow_damaged=args.allow_damaged,
        workers=args.workers,
        timeout=args.timeout,
    )


def _add_shard(parser: argparse.ArgumentParser) -> None:
    _add_listed(parser, out="data/shards")
    parser.add_argument(
        "--shard-mib", type=float, default=256, help="largest shard in MiB (%(default)s)"
    )


def _shard(args: argparse.Namespace) -> object:
    from vidcsl.data.prepare.shard import shard

    return shard(
        root=args.root,
        lists=args.lists,
        out=args.out,
        shard_bytes=int(args.shard_mib * 2**20),
        workers=args.workers,
    )


# Rendered videos.


def _add_synthetic(parser: argparse.ArgumentParser) -> None:
    from vidcsl.data.synthetic import CLASSES

    parser.add_argument("--root", type=Path, required=True, help="the folder to make")
    parser.add_argument("--classes", type=comma_separated, default=CLASSES, help="a,b,c")
    sizes = {
        "--sources-per-class": (8, "appearances per class; a quarter of them is for testing"),
        "--clips-per-source": (3, "clips per appearance, which form one group"),
        "--frames": (48, "frames per clip"),
        "--size": (64, "height and width in pixels"),
        "--fps": (25, "frames per second"),
        "--seed": (0, "seed of every random choice"),
    }
    for option, (default, meaning) in sizes.items():
        parser.add_argument(option, type=int, default=default, help=f"{meaning} (%(default)s)")


def _synthetic(args: argparse.Namespace) -> object:
    from vidcsl.data import synthetic

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


AddArguments = Callable[[argparse.ArgumentParser], None]
Work = Callable[[argparse.Namespace], object]  # returns a report, which is printed
KINDS: dict[str, tuple[AddArguments, Work, str]] = {
    "ucf101": (
        _add_official,
        _official,
        "make lists of UCF101 from its published split files (and archives)",
    ),
    "hmdb51": (
        _add_official,
        _official,
        "make lists of HMDB51 from its published split files (and archives)",
    ),
    "kinetics": (_add_annotated, _kinetics, "make lists of Kinetics from its annotations"),
    "ssv2": (_add_ssv2, _ssv2, "make lists of Something-Something V2 from its annotations"),
    "folder": (_add_folder, _folder, "make lists of any folder of videos"),
    "convert": (_add_convert, _convert, "convert lists made for PySlowFast or mmaction2"),
    "scan": (_add_scan, _scan, "decode every listed video and set damaged ones aside"),
    "transcode": (_add_transcode, _transcode, "make small copies that decode fast"),
    "shard": (_add_shard, _shard, "pack listed videos into tar shards"),
    "synthetic": (_add_synthetic, _synthetic, "render small videos whose motion is the class"),
}
