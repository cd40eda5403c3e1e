"""What data sets have in common whose annotations name clips, and whose files may lie anywhere."""

import json
import os
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vidcsl.data.lists import VIDEO_SUFFIXES, Row, shorten
from vidcsl.errors import UserError


def index_videos(root: Path) -> dict[str, str]:
    """Every video under `root`, however deep: its name without suffix to its path under `root`.

    Links to folders are followed. Of two with one name the first in alphabetical order counts.
    """
    if not root.is_dir():
        raise UserError(f"the videos' folder {root} does not exist")
    videos: dict[str, str] = {}
    for folder, names in sorted(_folders(root)):
        for name in sorted(names):
            if Path(name).suffix.lower() in VIDEO_SUFFIXES:
                path = Path(folder, name).relative_to(root)
                videos.setdefault(path.stem, path.as_posix())
    return videos


def _folders(root: Path) -> Iterator[tuple[str, list[str]]]:
    """Each folder under `root` and the names of its files; one that links lead to twice, once."""
    seen = set[str]()
    for folder, below, names in os.walk(root, followlinks=True):
        place = os.path.realpath(folder)
        if place in seen:
            below.clear()
            continue
        seen.add(place)
        yield folder, names


def read_json(path: Path) -> Any:
    """A JSON file. Raises UserError where it is missing or is none."""
    try:
        return json.loads(read_text(path))
    except ValueError as error:
        raise UserError(f"{path} is not readable as JSON: {error}") from error


def read_text(path: Path) -> str:
    """A text file. Raises UserError where it is missing or not UTF-8."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {error.reason}") from error


def check_classes(kind: str, classes: Iterable[str], known: Container[str]) -> None:
    """Raise UserError where a class that is asked for is none of the annotations'."""
    unknown = next((name for name in classes if name not in known), None)
    if unknown is not None:
        raise UserError(f"{kind}: the annotations have no class {unknown!r}")


def without_repeats(
    splits: Mapping[str, Sequence[Row]],
) -> tuple[dict[str, list[Row]], list[str]]:
    """Each video once in each list, the last line counting; a note on how many were left out."""
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
