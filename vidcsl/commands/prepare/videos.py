"""`vidcsl prepare scan | transcode | shard`: work on the videos that lists name."""

import argparse
from pathlib import Path

from vidcsl.commands.prepare.kind import Kind, add_places, add_workers
from vidcsl.data.prepare import scan, shard, transcode
from vidcsl.data.readers import READERS


def _add_common(parser: argparse.ArgumentParser, *, out: str) -> None:
    add_places(parser, out=out, root="the folder that the lists' paths are relative to")
    parser.add_argument("--lists", type=Path, nargs="+", required=True, help="which videos")
    add_workers(parser)


def _add_timeout(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--timeout", type=float, default=600, help="seconds for one video (%(default)s)"
    )


def _add_scan(parser: argparse.ArgumentParser) -> None:
    _add_common(parser, out="data_lists/scanned")
    _add_timeout(parser)
    parser.add_argument(
        "--reader", choices=("auto", *READERS), default="auto", help="DATA.READER of the training"
    )


def _scan(args: argparse.Namespace) -> scan.ScanReport:
    return scan.scan(
        root=args.root,
        lists=args.lists,
        out=args.out,
        reader=args.reader,
        workers=args.workers,
        timeout=args.timeout,
    )


def _add_transcode(parser: argparse.ArgumentParser) -> None:
    settings = transcode.Settings()
    _add_common(parser, out="data_lists/transcoded")
    _add_timeout(parser)
    parser.add_argument("--out-root", type=Path, required=True, help="the folder of the copies")
    parser.add_argument(
        "--short-side",
        type=int,
        default=settings.short_side,
        help="pixels; smaller pictures keep their size (%(default)s)",
    )
    parser.add_argument(
        "--gop", type=int, default=settings.gop, help="frames between keyframes (%(default)s)"
    )
    parser.add_argument(
        "--crf", type=int, default=settings.crf, help="quality, 0 is lossless (%(default)s)"
    )
    parser.add_argument("--preset", default=settings.preset, help="x264's effort (%(default)s)")
    parser.add_argument(
        "--allow-damaged", action="store_true", help="leave out videos that cannot be decoded whole"
    )


def _transcode(args: argparse.Namespace) -> transcode.TranscodeReport:
    return transcode.transcode(
        root=args.root,
        lists=args.lists,
        out_root=args.out_root,
        out=args.out,
        settings=transcode.Settings(
            short_side=args.short_side, gop=args.gop, crf=args.crf, preset=args.preset
        ),
        allow_damaged=args.allow_damaged,
        workers=args.workers,
        timeout=args.timeout,
    )


def _add_shard(parser: argparse.ArgumentParser) -> None:
    _add_common(parser, out="data/shards")
    parser.add_argument(
        "--shard-mib", type=float, default=256, help="of videos in a shard, at most (%(default)s)"
    )


def _shard(args: argparse.Namespace) -> shard.ShardReport:
    return shard.shard(
        root=args.root,
        lists=args.lists,
        out=args.out,
        shard_bytes=int(args.shard_mib * 2**20),
        workers=args.workers,
    )


KINDS = {
    "scan": Kind("decode every video of lists whole, set aside the damaged", _add_scan, _scan),
    "transcode": Kind("small, quickly read copies of the videos", _add_transcode, _transcode),
    "shard": Kind("pack the videos of lists into tar shards", _add_shard, _shard),
}
