"""What all list makers share: check splits, find files, write lists, and report on them."""

import csv
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from vidcsl.data.lists import VIDEO_SUFFIXES, Row, read_rows, shorten, write_list
from vidcsl.errors import UserError
from vidcsl.io import file_state, is_hidden, replacing

# The group in a video's path: which clips were cut from one source --------------------------------

# Clips named as in UCF101; searched in the path under the root, so the class is part of the group.
GROUP_PATTERN = r"^(.+_g\d+)_c\d+"


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """A regular expression whose first bracket is the group. Raises UserError for any other."""
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UserError(f"the group pattern {pattern!r} is malformed: {error}") from error
    if compiled.groups < 1:
        raise UserError(f"the group pattern {pattern!r} needs a capture group, in brackets")
    return compiled


def group_of(video: str, pattern: re.Pattern[str]) -> str:
    """The group of a path like `class/name.mp4`; without a match it is a group of its own."""
    match = pattern.search(video)
    return (match[1] if match else None) or str(Path(video).with_suffix(""))


# Published splits and the files on disk -----------------------------------------------------------


@dataclass(frozen=True)
class ListReport:
    """The lists that were written, what was left out and what else to know; `print` shows it."""

    dataset: str
    lists: Mapping[Path, int]
    classes: tuple[str, ...]
    videos: int
    groups: int
    missing: tuple[Row, ...] = ()
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        counts = f"{len(self.classes)} classes, {self.videos} videos, {self.groups} groups"
        lines = [f"{self.dataset}: {counts}"]
        lines += [f"{path}: {number} videos" for path, number in self.lists.items()]
        lines += [f"left out: {describe_missing(self.missing)}"] if self.missing else []
        return "\n  ".join([*lines, *self.notes])


def choose_classes(
    known: Sequence[str], *, classes: Sequence[str], subset: bool, root: Path
) -> tuple[str, ...]:
    """The classes to keep, in the order of `known`.

    Args:
        known: every class that the split files name.
        classes: the ones to keep; empty: all.
        subset: keep only those that have a folder under `root`.
    """
    unknown = [name for name in classes if name not in known]
    if unknown:
        raise UserError(f"the split files have no class {shorten(unknown)}: see {shorten(known)}")
    asked = [name for name in known if name in (classes or known)]
    kept = [name for name in asked if not subset or (root / name).is_dir()]
    if not kept:
        raise UserError(f"{root} has no folder of the classes {shorten(asked)}")
    return tuple(kept)


def check_disjoint(
    name: str, train: Iterable[Row], test: Iterable[Row], *, key: Callable[[Row], str], what: str
) -> None:
    """Raise UserError if both halves of a split share a value of `key`."""
    shared = sorted({key(row) for row in train} & {key(row) for row in test})
    if shared:
        raise UserError(
            f"{name}: {len(shared)} {what} are in both training and test: {shorten(shared)}"
        )


def check_total(what: str, *, found: int, expected: int) -> None:
    """Raise UserError if official lists do not hold what they are known to hold."""
    if found != expected:
        raise UserError(
            f"{what}: {found} where the official lists have {expected} "
            "(pass --subset if the split files are cut to fewer classes)"
        )


def locate(videos: Iterable[str], *, root: Path) -> dict[str, str]:
    """The path under `root` of each listed video that is there.

    A copy with another suffix counts too, because transcoded copies keep the names. Each folder is
    listed once: on a network disk that is faster than a query for each of 13,320 files.
    """
    wanted = [PurePosixPath(video) for video in videos]
    folders = {path.parent for path in wanted}
    files = {
        folder / file.name
        for folder in folders
        if (root / folder).is_dir()
        for file in (root / folder).iterdir()
    }
    candidates = {
        path: [path, *(path.with_suffix(suffix) for suffix in VIDEO_SUFFIXES)] for path in wanted
    }
    return {
        str(path): str(next(file for file in names if file in files))
        for path, names in candidates.items()
        if not files.isdisjoint(names)
    }


def refuse_overwriting(
    read: Sequence[Path], *, out: str | Path, names: Iterable[str] | None = None
) -> None:
    """Raise UserError if a list to write would replace a file that is read.

    Args:
        read: the files.
        out: the folder of the lists.
        names: of the lists, without suffix; None: those of the files.
    """
    stems = [Path(path).stem for path in read] if names is None else names
    written = {(Path(out) / f"{name}.csv").resolve() for name in stems}
    if own := [path for path in read if Path(path).resolve() in written]:
        raise UserError(f"--out {out} would overwrite {own[0]}: choose another folder")


def describe_missing(missing: Sequence[Row]) -> str:
    """One line: how many, of which classes, the first names."""
    classes = [f"{name} {count}" for name, count in Counter(r.class_name for r in missing).items()]
    names = shorten([row.video for row in missing], most=3)
    return f"{len(missing)} videos ({shorten(classes)}): {names}"


def write_splits(
    dataset: str,
    splits: Mapping[str, Sequence[Row]],
    *,
    root: Path,
    out: str | Path,
    allow_missing: bool,
    read: Sequence[Path] = (),
    notes: Sequence[str] = (),
) -> ListReport:
    """Write `<out>/<name>.csv` for each split, naming the files as they are under `root`.

    Raises:
        UserError: files are missing and that is not allowed, nothing is left of a list, or one
            would replace a file that was `read`. Then no list is written.
    """
    refuse_overwriting(read, out=out, names=splits)
    if not root.is_dir():
        why = "is a file, not a folder" if root.exists() else "does not exist"
        raise UserError(f"{dataset}: the videos' folder {root} {why}")
    wanted = {row.video: row for rows in splits.values() for row in rows}
    places = locate(wanted, root=root)
    missing = [row for video, row in wanted.items() if video not in places]
    if missing and not allow_missing:
        raise UserError(
            f"{dataset}: {root} lacks {describe_missing(missing)}; complete it, "
            "or pass --allow-missing to leave them out of the lists"
        )
    kept = {
        name: [row._replace(video=places[row.video]) for row in rows if row.video in places]
        for name, rows in splits.items()
    }
    empty = [name for name, rows in kept.items() if not rows]
    if empty:
        raise UserError(f"{dataset}: {root} has no video of the list {shorten(empty)}")
    for name, rows in kept.items():
        write_list(Path(out) / f"{name}.csv", rows)
    renamed = sum(video != place for video, place in places.items())
    suffixes = [f"{renamed} videos were found under another suffix"] if renamed else []
    present = [row for video, row in wanted.items() if video in places]
    return ListReport(
        dataset=dataset,
        lists={Path(out) / f"{name}.csv": len(rows) for name, rows in kept.items()},
        classes=tuple(sorted({row.class_name for row in present} - {""})),
        videos=len(present),
        groups=len({row.group for row in present} - {""}),
        missing=tuple(missing),
        notes=(*notes, *suffixes),
    )


# Annotations that name clips, whose files may be anywhere under the root --------------------------


def index_videos(root: Path) -> dict[str, str]:
    """Every video under `root`, however deep: its name without suffix to its path under `root`.

    Links to folders are followed, hidden files and folders are not looked at. Of two with one name
    the first in alphabetical order counts.
    """
    if not root.is_dir():
        raise UserError(f"the videos' folder {root} does not exist")
    folders: list[tuple[str, list[str]]] = []
    seen: set[str] = set()  # links may lead to a folder twice, or round in a circle
    for folder, below, names in os.walk(root, followlinks=True):
        place = os.path.realpath(folder)
        if place in seen:
            below.clear()
            continue
        seen.add(place)
        folders.append((folder, names))
    videos: dict[str, str] = {}
    for folder, names in sorted(folders):
        for name in sorted(names):
            path = Path(folder, name).relative_to(root)
            if path.suffix.lower() in VIDEO_SUFFIXES and not is_hidden(path):
                videos.setdefault(path.stem, path.as_posix())
    return videos


def read_json(path: Path) -> Any:
    """A JSON file. Raises UserError if it is missing or is not JSON."""
    try:
        return json.loads(read_text(path))
    except ValueError as error:
        raise UserError(f"{path} is not readable as JSON: {error}") from error


def read_text(path: Path) -> str:
    """A text file. Raises UserError if it is missing or not UTF-8."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {error.reason}") from error


def check_classes(kind: str, classes: Iterable[str], known: Container[str]) -> None:
    """Raise UserError for a class to keep that the annotations do not have."""
    unknown = next((name for name in classes if name not in known), None)
    if unknown is not None:
        raise UserError(f"{kind}: the annotations have no class {unknown!r}")


def without_repeats(
    splits: Mapping[str, Sequence[Row]],
) -> tuple[dict[str, list[Row]], list[str]]:
    """Each video once in each list, by its last line; a note on how many lines were left out."""
    kept = {name: list({row.video: row for row in rows}.values()) for name, rows in splits.items()}
    repeats = sum(map(len, splits.values())) - sum(map(len, kept.values()))
    return kept, [f"{repeats} lines that repeat a video were left out"] if repeats else []


def shared_groups(splits: Mapping[str, Sequence[Row]]) -> list[str]:
    """A note for each list whose groups are also in one before it."""
    notes, before = [], set[str]()
    for name, rows in splits.items():
        groups = {row.group for row in rows} - {""}
        if shared := sorted(groups & before):
            words = f"{len(shared)} groups are in an earlier list too: {shorten(shared, most=3)}"
            notes.append(f"{name}: {words}")
        before |= groups
    return notes


# Lists in, work on each video, lists out: for `scan`, `transcode` and `shard` ---------------------


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
            raise UserError(
                f"{path} is a list of packed videos: give the list of the original files"
            )
    return rows


def videos_of(rows: Mapping[str, Sequence[Row]]) -> list[str]:
    """Every video that any list names, once, in the order of the lists."""
    return list(dict.fromkeys(row.video for part in rows.values() for row in part))


def write_lists(rows: Mapping[str, Sequence[Row]], out: Path) -> dict[Path, int]:
    """Write `<out>/<name>.csv` for each list and return their lengths; remove an empty one."""
    paths = {out / f"{name}.csv": part for name, part in rows.items()}
    for path, part in paths.items():
        if part:
            write_list(path, part)
        else:  # a list of an earlier call would name videos that are out by now
            path.unlink(missing_ok=True)
    return {path: len(part) for path, part in paths.items()}


def write_table(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a CSV table, whole or not at all."""
    with replacing(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])


def state_of(path: Path) -> str:
    """`file_state`, and whether it may be read; empty if it is missing."""
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
