"""Pack the videos of lists into tar shards of WebDataset's form, and write the lists of the shards.

A sample is `<number>.<suffix>`, the video file as it is, `<number>.json` with its path, class and
group and, where it is labelled, `<number>.cls` with the number of its class. WebDataset reads the
shards in sequence; `vidcsl.data.shards` reads single videos by the places that the lists name.
The same lists and files give the same bytes.
"""

import hashlib
import io
import json
import tarfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from vidcsl.data.lists import Row, shorten
from vidcsl.data.prepare import jobs
from vidcsl.data.prepare import lists as common
from vidcsl.data.prepare import lists as relist
from vidcsl.data.shards import Span
from vidcsl.errors import UserError
from vidcsl.io import replacing

RECORD = "shard.jsonl"


@dataclass(frozen=True)
class ShardReport:
    """What was packed.

    Attributes:
        shards: bytes of each, by name.
        lists: that were written, and their lengths.
        resumed: shards that an earlier call had written.
    """

    shards: Mapping[str, int]
    lists: Mapping[Path, int]
    resumed: int

    def __str__(self) -> str:
        size = sum(self.shards.values()) / 2**20
        lines = [
            f"shard: {len(self.shards)} shards, {size:.1f} MiB ({self.resumed} known from before)",
            *(f"{path}: {number} videos" for path, number in self.lists.items()),
        ]
        return "\n  ".join(lines)


def shard(
    *, root: Path, lists: Sequence[Path], out: Path, shard_bytes: int = 2**28, workers: int
) -> ShardReport:
    """Write `<list>-000000.tar`, ... and `<list>.csv` for each list into `out`.

    To train from them, `DATA.ROOT` names `out`, or the URL where it has been copied to, and
    `DATA.TRAIN_LIST` the list in it. There are also `SHA256SUMS` and the record `shard.jsonl`, with
    which a second call goes on.

    Args:
        root: the folder that the lists' paths are relative to.
        lists: CSV, or UCF101's `.txt`. Classes are numbered by name over all of them.
        out: a folder of its own.
        shard_bytes: of the videos in one shard, as nearly as whole videos allow.
        workers: processes.

    Raises:
        UserError: a list cannot be read or would be overwritten, or a video is missing.
    """
    if shard_bytes < 1:
        raise UserError(f"shard: a shard must hold some bytes, not {shard_bytes}")
    common.refuse_overwriting(lists, out=out)
    rows = relist.read_lists(lists)
    sizes = _sizes(relist.videos_of(rows), root)
    names = sorted({row.class_name for part in rows.values() for row in part} - {""})
    labels = {name: label for label, name in enumerate(names)}
    tasks = [
        _task(f"{name}-{k:06d}.tar", slice_, root=root, out=out, labels=labels)
        for name, part in rows.items()
        for k, slice_ in enumerate(_slices(part, sizes=sizes, most=shard_bytes))
    ]
    outcomes = jobs.run(
        write_shard,
        tasks,
        record=out / RECORD,
        title="packing shards",
        workers=workers,
        intact=lambda result: relist.has_size(out / result["shard"], result["bytes"]),
    )
    if outcomes.failures:
        name, reason = next(iter(outcomes.failures.items()))
        raise UserError(
            f"{len(outcomes.failures)} shards cannot be written, first {name}: {reason}"
        )
    with replacing(out / "SHA256SUMS") as partial:
        results = outcomes.results.values()
        partial.write_text("".join(f"{r['sha256']}  {r['shard']}\n" for r in results))
    packed = {name: _packed_rows(name, part, outcomes.results) for name, part in rows.items()}
    return ShardReport(
        shards={name: result["bytes"] for name, result in outcomes.results.items()},
        lists=relist.write_lists(packed, out),
        resumed=outcomes.resumed,
    )


def write_shard(
    rows: Sequence[Row],
    *,
    first: int,
    root: Path,
    out: Path,
    scratch: Path,
    name: str,
    labels: Mapping[str, int],
) -> jobs.Result:
    """Write one shard; where each video's bytes lie in it, and its size and checksum.

    Args:
        rows: of the list that go into it.
        first: the number of its first sample.
        root, out, scratch: where the videos are, where the shard goes, and where it is unfinished.
        name: of the shard.
        labels: the number of each class.
    """
    spans = []
    with jobs.replacing(out / name, scratch=scratch) as partial:
        with tarfile.open(partial, "w", format=tarfile.USTAR_FORMAT) as tar:
            for number, row in enumerate(rows, start=first):
                content = _read(root / row.video)
                begin = _add(tar, f"{number:08d}{PurePosixPath(row.video).suffix}", content)
                spans.append((begin, len(content), zlib.crc32(content)))
                for suffix, text in _describe(row, labels):
                    _add(tar, f"{number:08d}.{suffix}", text.encode())
        digest, size = relist.sha256_of(partial), partial.stat().st_size
    return {"shard": name, "spans": spans, "bytes": size, "sha256": digest}


def _slices(
    rows: Sequence[Row], *, sizes: Mapping[str, int], most: int
) -> Iterator[tuple[int, Sequence[Row]]]:
    """Neighbours in the list, at most `most` bytes but at least one; and their place."""
    first = filled = 0
    for number, row in enumerate(rows):
        if number > first and filled + sizes[row.video] > most:
            yield first, rows[first:number]
            first, filled = number, 0
        filled += sizes[row.video]
    yield first, rows[first:]


def _task(
    name: str,
    slice_: tuple[int, Sequence[Row]],
    *,
    root: Path,
    out: Path,
    labels: Mapping[str, int],
) -> jobs.Task:
    """The writing of one shard."""
    first, rows = slice_
    states = [relist.state_of(root / row.video) for row in rows]
    state = hashlib.sha256(json.dumps([rows, first, states, labels]).encode()).hexdigest()
    places = {"root": root, "out": out, "name": name, "scratch": jobs.scratch_of(out / RECORD)}
    return jobs.Task(name, state, {"rows": rows, "first": first, "labels": labels, **places})


def _packed_rows(name: str, rows: Sequence[Row], results: Mapping[str, jobs.Result]) -> list[Row]:
    spans = [
        Span(result["shard"], *span)
        for shard_name, result in results.items()
        if shard_name.rpartition("-")[0] == name
        for span in result["spans"]
    ]
    return [row._replace(span=span) for row, span in zip(rows, spans, strict=True)]


def _sizes(videos: Sequence[str], root: Path) -> dict[str, int]:
    missing = [video for video in videos if not (root / video).is_file()]
    if missing:
        raise UserError(
            f"shard: {root} lacks {len(missing)} of {len(videos)} video files: {shorten(missing)} "
            "(folders of pictures must be transcoded first)"
        )
    return {video: (root / video).stat().st_size for video in videos}


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> int:
    """Append a member that says nothing of this machine; where its bytes begin."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    begin = tar.offset + len(info.tobuf(tar.format))
    tar.addfile(info, io.BytesIO(content))
    return begin


def _describe(row: Row, labels: Mapping[str, int]) -> Iterator[tuple[str, str]]:
    facts = {"video": row.video, "class": row.class_name, "group": row.group}
    yield "json", json.dumps(facts)
    if row.class_name:
        yield "cls", str(labels[row.class_name])


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read video {path}: {error.strerror}") from error
