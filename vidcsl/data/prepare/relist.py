"""Lists in, work on each of their videos, lists out: what `scan`, `transcode` and `shard` share."""

import csv
import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from vidcsl.data.lists import Row, file_state, read_rows, replacing, write_list
from vidcsl.errors import UserError


def read_lists(lists: Sequence[Path]) -> dict[str, list[Row]]:
    """The rows of each list, by its name without suffix.

    Raises:
        UserError: a list cannot be read, is one of packed videos, or two have one name.
    """
    rows = {Path(path).stem: read_rows(path) for path in lists}
    if len(rows) < len(lists):
        raise UserError("two of the lists have the same name: give them one by one")
    for path, part in zip(lists, rows.values(), strict=True):
        if any(row.span for row in part):
            raise UserError(f"{path} is a list of packed videos: give that of the files themselves")
    return rows


def videos_of(rows: Mapping[str, Sequence[Row]]) -> list[str]:
    """Every video that any list names, once, in the order of the lists."""
    return list(dict.fromkeys(row.video for part in rows.values() for row in part))


def write_lists(rows: Mapping[str, Sequence[Row]], out: Path) -> dict[Path, int]:
    """Write `<out>/<name>.csv` for each list, how many rows it has; one without any is removed."""
    paths = {out / f"{name}.csv": part for name, part in rows.items()}
    for path, part in paths.items():
        if part:
            write_list(path, part)
        else:  # that of an earlier call would name videos that are out by now
            path.unlink(missing_ok=True)
    return {path: len(part) for path, part in paths.items()}


def write_table(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a CSV table, whole or not at all."""
    with replacing(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])


def state_of(path: Path) -> str:
    """`file_state`, and whether it may be read; empty where it is missing."""
    try:
        state = file_state(path)
    except OSError:
        return ""
    return f"{state}{'' if os.access(path, os.R_OK) else ' locked'}"


def has_size(path: Path, size: int) -> bool:
    """Whether there is a file of this size."""
    return path.is_file() and path.stat().st_size == size


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, as `sha256sum` prints it."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
