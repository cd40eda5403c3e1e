"""Pack the videos of lists into tar shards of WebDataset's form, and write the lists of the shards.

A sample is `<number>.<suffix>`, the video file as it is, `<number>.json` with its path, class and
group and, if it is labelled, `<number>.cls` with the number of its class. WebDataset reads the
shards in sequence; `vidcsl.data.shards` reads single videos by the byte ranges in the lists.
The same lists and files give the same bytes.
"""

import hashlib
import io
import json
import tarfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from vidcsl.data.lists import Row, shorten
from vidcsl.data.prepare import jobs
from vidcsl.data.prepare.lists import (
    has_size,
    read_lists,
    refuse_overwriting,
    sha256_of,
    state_of,
    videos_of,
    write_lists,
)
from vidcsl.data.shards import Span
from vidcsl.errors import UserError
from vidcsl.io import replacing

RECORD = "shard.jsonl"


@dataclass(frozen=True)
class ShardReport:
    """What was packed.

    Attributes:
        shards: bytes of each, by name.
        lists: the lists that were written, and their lengths.
        resumed: shards that an earlier call had written.
    """

    shards: Mapping[str, int]
    lists: Mapping[Path, int]
    resumed: int

    def __str__(self) -> str:
        size = sum(self.shards.values()) / 2**20
        lines = [
            f"shard: {len(self.shards)} shards, {size:.1f} MiB "
            f"({self.resumed} from an earlier call)",
            *(f"{path}: {number} videos" for path, number in self.lists.items()),
        ]
        return "\n  ".join(lines)


def shard(
    *, root: Path, lists: Sequence[Path], out: Path, shard_bytes: int = 2**28, workers: int
) -> ShardReport:
    """Write `<list>-000000.tar`, ... and `<list>.csv` for each list into `out`.

    To train from them, `DATA.ROOT` names `out`, or the URL where it has been copied to, and
    `DATA.TRAIN_LIST` the list in it. There are also `SHA256SUMS` and the record `shard.jsonl`, from
    which a second call resumes.

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
        raise UserError(f"shard: the size of a shard must be positive, not {shard_bytes}")
    refuse_overwriting(lists, out=out)
    rows = read_lists(lists)
    videos = videos_of(rows)
    missing = [video for video in videos if not (root / video).is_file()]
    if missing:
        raise UserError(
            f"shard: {root} lacks {len(missing)} of {len(videos)} video files: {shorten(missing)} "
            "(folders of pictures must be transcoded first)"
        )
    sizes = {video: (root / video).stat().st_size for video in videos}
    # Over all lists, so that a class has one number in training and test shards.
    classes = sorted({row.class_name for part in rows.values() for row in part} - {""})
    labels = {name: label for label, name in enumerate(classes)}
    scratch = jobs.scratch_of(out / RECORD)

    tasks = []
    shards_of: dict[str, list[str]] = {name: [] for name in rows}
    for name, part in rows.items():
        for first, end in cut([sizes[row.video] for row in part], most=shard_bytes):
            packed = part[first:end]
            states = [state_of(root / row.video) for row in packed]
            # A shard is packed again if any video in it, its number or a label has changed.
            state = hashlib.sha256(json.dumps([packed, first, states, labels]).encode())
            # Six digits: a sorted listing is in the order of the list.
            tar_name = f"{name}-{len(shards_of[name]):06d}.tar"
            arguments = {"rows": packed, "first": first, "labels": labels, "name": tar_name}
            places = {"root": root, "out": out, "scratch": scratch}
            tasks.append(jobs.Task(tar_name, state.hexdigest(), arguments | places))
            shards_of[name].append(tar_name)
    outcomes = jobs.run(
        write_shard,
        tasks,
        record=out / RECORD,
        title="packing shards",
        workers=workers,
        intact=lambda result: has_size(out / result["shard"], result["bytes"]),
    )
    if outcomes.failures:
        name, reason = next(iter(outcomes.failures.items()))
        raise UserError(
            f"{len(outcomes.failures)} shards cannot be written, first {name}: {reason}"
        )
    with replacing(out / "SHA256SUMS") as partial:
        results = outcomes.results.values()
        partial.write_text("".join(f"{r['sha256']}  {r['shard']}\n" for r in results))
    packed_rows = {}
    for name, part in rows.items():
        made = [outcomes.results[tar_name] for tar_name in shards_of[name]]
        spans = [Span(each["shard"], *span) for each in made for span in each["spans"]]
        packed_rows[name] = [row._replace(span=span) for row, span in zip(part, spans, strict=True)]
    return ShardReport(
        shards={name: result["bytes"] for name, result in outcomes.results.items()},
        lists=write_lists(packed_rows, out),
        resumed=outcomes.resumed,
    )


def cut(sizes: Sequence[int], *, most: int) -> list[tuple[int, int]]:
    """Cut a list into runs of neighbours of at most `most` bytes, but at least one video.

    Returns:
        The position of the first video of each run, and of the one after its last.
    """
    starts, filled = [0], 0
    for number, size in enumerate(sizes):
        if number > starts[-1] and filled + size > most:
            starts.append(number)
            filled = 0
        filled += size
    return list(zip(starts, [*starts[1:], len(sizes)], strict=True))


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
    """Write one shard; return each video's byte range in it, and its size and checksum.

    Args:
        rows: of the list that go into it.
        first: the number of its first sample.
        root, out, scratch: the folders of the videos, the shards and the unfinished shards.
        name: of the shard.
        labels: the number of each class.
    """
    spans = []
    with jobs.replacing(out / name, scratch=scratch) as partial:
        # USTAR: every tar program reads it, and its headers are one block each.
        with tarfile.open(partial, "w", format=tarfile.USTAR_FORMAT) as tar:
            for number, row in enumerate(rows, start=first):
                path = root / row.video
                try:
                    content = path.read_bytes()
                except OSError as error:
                    raise UserError(f"cannot read video {path}: {error.strerror}") from error
                begin = _add(tar, f"{number:08d}{PurePosixPath(row.video).suffix}", content)
                spans.append((begin, len(content), zlib.crc32(content)))
                facts = {"video": row.video, "class": row.class_name, "group": row.group}
                _add(tar, f"{number:08d}.json", json.dumps(facts).encode())
                if row.class_name:
                    _add(tar, f"{number:08d}.cls", str(labels[row.class_name]).encode())
        digest, size = sha256_of(partial), partial.stat().st_size
    return {"shard": name, "spans": spans, "bytes": size, "sha256": digest}


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> int:
    """Append a member without times or owners, and return where its bytes begin."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    begin = tar.offset + len(info.tobuf(tar.format))
    tar.addfile(info, io.BytesIO(content))
    return begin
