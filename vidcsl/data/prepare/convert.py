"""Lists that were made for other toolkits: PySlowFast's and mmaction2's.

Both hold a path and the number of a class on each line. mmaction2's lists of frame folders hold the
number of frames, or the first frame and their number, in between.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from vidcsl.data.lists import Row
from vidcsl.data.prepare.lists import (
    GROUP_PATTERN,
    ListReport,
    check_disjoint,
    compile_pattern,
    group_of,
    read_json,
    read_text,
    shared_groups,
    without_repeats,
    write_splits,
)
from vidcsl.errors import UserError

DIGITS = 4  # of a class that has a number but no name
# How many numbers there are between the path and the class.
FORMS = {"pyslowfast": 0, "mmaction2": 0, "mmaction2-frames": 1, "mmaction2-offset-frames": 2}


def prepare(
    *,
    root: str | Path,
    lists: Sequence[Path],
    out: str | Path,
    form: str,
    separator: str = " ",
    class_names: Path | None = None,
    group_pattern: str = GROUP_PATTERN,
    allow_missing: bool = False,
) -> ListReport:
    """Write a CSV list for each list, named like it.

    Args:
        root: the folder that the paths are relative to; absolute ones must be in it.
        lists: the lists to read.
        out: where the lists go.
        form: a name in `FORMS`.
        separator: between the columns. The path may contain it.
        class_names: the names of the classes, one a line in the order of their numbers, or JSON
            `{"name": number}`. Without it a class is called by its number, as 0042.
        group_pattern: as for a folder of videos.
        allow_missing: leave videos that are not on disk out of the lists.

    Raises:
        UserError: a list or an option is not what it should be, or videos are missing.
    """
    root, pattern = Path(root), compile_pattern(group_pattern)
    if form not in FORMS:
        raise UserError(f"convert: unknown form {form!r}, not one of {', '.join(FORMS)}")
    if not separator:
        raise UserError("convert: the separator is empty")
    numbered = {
        Path(path).stem: read_entries(Path(path), separator=separator, numbers=FORMS[form])
        for path in lists
    }
    if len(numbered) < len(lists):
        raise UserError("convert: two of the lists have the same name; convert them one by one")

    if class_names is None:
        # One width in all calls, because labels are numbered by sorted name.
        highest = max(label for entries in numbered.values() for _, label in entries)
        names = {k: f"{k:0{DIGITS}d}" for k in range(highest + 1)}
    elif class_names.suffix != ".json":
        names = dict(enumerate(line.strip() for line in read_text(class_names).splitlines()))
    else:
        document = read_json(class_names)
        try:
            names = {int(number): name.strip('"') for name, number in document.items()}
        except (AttributeError, TypeError, ValueError) as error:
            raise UserError(f'{class_names}: expected {{"class name": number, ...}}') from error

    listed: dict[str, list[Row]] = {}
    for name, entries in numbered.items():
        class_of: dict[str, str] = {}
        listed[name] = []
        for video, label in entries:
            if Path(video).is_absolute():
                try:
                    video = Path(video).relative_to(root.absolute()).as_posix()
                except ValueError as error:
                    raise UserError(
                        f"convert: {video} is not in the videos' folder {root}"
                    ) from error
            video = os.path.normpath(video)
            if label >= 0 and label not in names:
                raise UserError(f"convert: {video} has the class {label}, which has no name")
            class_name = names[label] if label >= 0 else ""
            first = class_of.setdefault(video, class_name)
            if first != class_name:
                raise UserError(
                    f"convert: {name} gives {video} the classes {first or 'none'} and "
                    f"{class_name or 'none'}; a video has one"
                )
            listed[name].append(Row(video, class_name, group_of(video, pattern)))

    splits, notes = without_repeats(listed)
    for k, (name, rows) in enumerate(splits.items()):
        for other in list(splits)[:k]:
            pair = f"{other} and {name}"
            check_disjoint(pair, splits[other], rows, key=lambda row: row.video, what="videos")
    return write_splits(
        "convert",
        splits,
        root=root,
        out=out,
        allow_missing=allow_missing,
        read=lists,
        notes=[*notes, *shared_groups(splits)],
    )


def read_entries(path: Path, *, separator: str, numbers: int) -> list[tuple[str, int]]:
    """Path and class number of each line; -1 for a line without a class.

    Args:
        path: the list.
        separator: between its columns.
        numbers: how many columns there are between path and class.
    """
    form = re.compile(
        rf"(?P<video>.+?)(?:{re.escape(separator)}\d+){{{numbers}}}"
        rf"{re.escape(separator)}\s*(?P<label>-?\d+)"
    )
    entries = []
    for line, text in enumerate(read_text(path).splitlines(), start=1):
        if not text.strip():
            continue
        match = form.fullmatch(text.strip())
        if not match:
            shape = separator.join(["path", *["number"] * numbers, "class number"])
            raise UserError(f"{path}, line {line}: expected {shape!r}, found {text.strip()!r}")
        video = match["video"].strip()
        if video[0] == video[-1] and video[0] in "\"'" and len(video) > 2:  # as CSV has paths
            video = video[1:-1]
        entries.append((video, int(match["label"])))
    if not entries:
        raise UserError(f"the list {path} contains no video")
    return entries
