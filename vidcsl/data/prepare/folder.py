"""Lists of any folder of videos, laid out as people lay them out.

- `ROOT/<class>/*.mp4`, classes within classes (`ROOT/<sport>/<stroke>/*.mp4`) among them;
- `ROOT/train/<class>/*.mp4` and `ROOT/val/<class>/*.mp4`, or training and test roots apart;
- `ROOT/*.mp4` with a table that names their classes;
- `ROOT/*.mp4` without labels.
"""

import csv
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median

from vidcsl.data.lists import VIDEO_SUFFIXES, Row, shorten
from vidcsl.data.prepare.lists import (
    GROUP_PATTERN,
    ListReport,
    choose_classes,
    compile_pattern,
    group_of,
    read_text,
    write_splits,
)
from vidcsl.errors import UserError
from vidcsl.io import is_hidden
from vidcsl.seeding import numpy_generator

# Of videos that a list may not name.
OTHER_SUFFIXES = (".3gp", ".flv", ".m4v", ".mpeg", ".mpg", ".mts", ".ogv", ".ts", ".wmv")
# What people call the halves of a split; without a test half, the validation half is tested on.
SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("test", "testing"), "test"),
    **dict.fromkeys(("val", "valid", "validate", "validation", "dev", "eval"), "val"),
}
# What people call the columns of a table of labels.
VIDEO_COLUMNS = ("video", "videos", "file", "filename", "file_name", "path", "name", "clip", "id")
CLASS_COLUMNS = ("class", "label", "labels", "category", "action", "class_name", "target")


def prepare_folder(
    *,
    root: str | Path,
    out: str | Path,
    test_root: str | Path | None = None,
    labels: str | Path | None = None,
    class_level: int = 0,
    test_share: float = 0.25,
    group_pattern: str = GROUP_PATTERN,
    classes: Sequence[str] = (),
    seed: int = 0,
) -> ListReport:
    """Write `train.csv` and, where there are labelled videos to test on, `test.csv`.

    Args:
        root: holds the class folders, folders of splits that hold these, or the videos themselves.
        out: where the lists go.
        test_root: likewise, of the test videos; the lists' paths are then relative to the folder
            that holds both roots.
        labels: a table (CSV, TSV) of videos and their classes, for videos in no class folders; its
            columns group and split (train, val, test) are used, too.
        class_level: which folder of a path below the root is the class, from 1; 0: all of them, as
            `sport/stroke`.
        test_share: the fraction of each class to hold out, as near as whole groups allow, in
            [0, 1); not used where the folders or the table say what is tested on.
        group_pattern: a regular expression searched in each path under the root, as in
            `class/name.mp4`; its first bracket is the group. A path without a match is a group of
            its own.
        classes: keep only these classes; empty: all.
        seed: draws which groups are held out.

    Raises:
        UserError: nothing is found, the pattern, the fraction or the table is wrong, or nothing can
            be held out.
    """
    root, pattern = Path(root), compile_pattern(group_pattern)
    if not 0 <= test_share < 1:
        raise UserError(f"folder: the test share must be in [0, 1), not {test_share}")
    notes: list[str] = []
    roots = {"": _existing(root)}
    if test_root is not None:
        roots = {"train": root, "test": _existing(Path(test_root))}
    elif labels is None:
        roots = _split_folders(root, notes)
    # The folder that the lists' paths are relative to.
    base = Path(os.path.commonpath([each.absolute() for each in (root, *roots.values())]))
    base = base if test_root is not None else root

    halves: dict[str, list[Row]] = {}
    first_of: dict[tuple[int, int], str] = {}  # by file: links would put it into both lists
    for split, place in roots.items():
        for path in _videos_in(place, first_of, notes):
            inside = path.relative_to(place)
            folders = inside.parts[:-1]
            if class_level:
                folders = folders[class_level - 1 : class_level]
            video = os.path.relpath(path.absolute(), base.absolute())
            row = Row(video, "/".join(folders), group_of(inside.as_posix(), pattern))
            halves.setdefault(split, []).append(row)
    if not any(halves.values()):
        kinds = ", ".join(VIDEO_SUFFIXES)
        raise UserError(f"folder: no video ({kinds}) in {root} or the folders in it")
    if labels is not None:
        halves = _labelled(halves[""], Path(labels), root, notes)
    if classes:
        rows = [row for part in halves.values() for row in part]
        known = sorted({row.class_name for row in rows} - {""})
        kept = choose_classes(known, classes=classes, subset=False, root=root)
        for split, part in halves.items():
            halves[split] = [row for row in part if row.class_name in kept]

    notes += _of_other_kinds(roots.values())
    splits = _lists(halves, root=root, share=test_share, seed=seed, notes=notes)
    notes += _warnings(splits["train"], seen=sum(map(len, halves.values())), written=splits)
    if test_root is not None:
        notes.append(f"paths are relative to {base}: give it as DATA.ROOT")
    return write_splits("folder", splits, root=base, out=out, allow_missing=False, notes=notes)


def _existing(root: Path) -> Path:
    if not root.is_dir():
        why = "is a file, not a folder" if root.exists() else "does not exist"
        raise UserError(f"folder: {root} {why}")
    return root


def _split_folders(root: Path, notes: list[str]) -> dict[str, Path]:
    """The folders that hold the halves of a split, by what they hold; {"": root} if there are none.

    A folder called train alone is no split: it holds all videos.
    """
    named = {each: SPLITS.get(each.name.lower(), "") for each in root.iterdir() if each.is_dir()}
    found = {split: path for path, split in sorted(named.items()) if split}
    if "train" not in found:
        return {"": root}
    others = [path.name for path, split in named.items() if not split and not is_hidden(path.name)]
    if others and len(found) > 1:
        notes.append(f"left out, neither train nor test: {shorten(sorted(others))}")
    return found if len(found) > 1 else {"": found["train"]}


def _videos_in(root: Path, first_of: dict[tuple[int, int], str], notes: list[str]) -> list[Path]:
    """The videos under a folder, however deep, each file once; links to folders are followed.

    Args:
        root: the folder.
        first_of: the name under which each file was found first; added to.
        notes: what is left out is added.
    """
    hidden, broken = 0, []
    links: list[tuple[Path, str]] = []
    found: list[Path] = []
    walked: set[str] = set()  # links may lead to a folder twice, or round in a circle
    for folder, below, names in os.walk(root, followlinks=True):
        # In place: `os.walk` goes on by this order, whatever that of the file system.
        below.sort()
        place = os.path.realpath(folder)
        if place in walked:
            below.clear()
            continue
        walked.add(place)
        for name in sorted(names):
            path = Path(folder, name)
            if path.suffix.lower() not in VIDEO_SUFFIXES:
                continue
            video = path.relative_to(root)
            if is_hidden(video):
                hidden += 1
            elif not path.exists():
                broken.append(video)
            else:
                state = path.stat()
                first = first_of.setdefault((state.st_dev, state.st_ino), str(video))
                if first == str(video):
                    found.append(path)
                else:
                    links.append((video, first))
    if hidden:
        notes.append(f"left out: {hidden} hidden files and files of hidden folders")
    if broken:
        notes.append(
            f"left out: {len(broken)} links to files that are not there, first {broken[0]}"
        )
    if links:
        link, first = links[0]
        notes.append(
            f"left out: {len(links)} further links to videos of the list, first {link} to {first}"
        )
    return found


def _labelled(
    rows: Sequence[Row], table: Path, root: Path, notes: list[str]
) -> dict[str, list[Row]]:
    """The rows with the classes of a table, by split; {"": rows} if the table names no splits."""
    by_name: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        for name in {row.video, Path(row.video).name, Path(row.video).stem}:
            by_name[name].append(row)
    halves: dict[str, list[Row]] = defaultdict(list)
    lost, seen = [], set()
    for line, entry in _table(table):
        video = os.path.normpath(entry["video"])
        found = by_name.get(video) or by_name.get(Path(video).name) or []
        if len(found) > 1:
            raise UserError(f"{table}, line {line}: {len(found)} videos are called {video}")
        if not found:
            lost.append(video)
            continue
        split = SPLITS.get(entry.get("split", "").lower(), "train" if "split" in entry else "")
        if found[0].video not in seen:
            group = entry.get("group") or found[0].group
            halves[split].append(found[0]._replace(class_name=entry["class"], group=group))
        seen.add(found[0].video)
    if not seen:
        raise UserError(f"{table} names no video that is in {root}; its first is {lost[0]!r}")
    if lost:
        notes.append(f"{table.name} names {len(lost)} videos that are not there: {shorten(lost)}")
    if unnamed := [row.video for row in rows if row.video not in seen]:
        notes.append(f"left out, not in {table.name}: {len(unnamed)} videos: {shorten(unnamed)}")
    return dict(halves)


def _table(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """The lines of a table: video, class, and group and split where it has them."""
    text = read_text(path)
    try:
        dialect: type[csv.Dialect] = csv.Sniffer().sniff(text[:4096], delimiters=",;\t")
    # One column, say: there is no delimiter to be found.
    except csv.Error:
        dialect = csv.excel
    reader = csv.reader(text.splitlines(), dialect)
    header = [name.strip().lower() for name in next(reader, [])]
    places: dict[str, int] = {}
    for ours, theirs in (("video", VIDEO_COLUMNS), ("class", CLASS_COLUMNS)):
        found = next((name for name in theirs if name in header), None)
        if found is None:
            raise UserError(
                f"{path}, line 1: no column is called {' or '.join(theirs[:4])}; there are "
                f"{', '.join(header)}"
            )
        places[ours] = header.index(found)
    places |= {name: header.index(name) for name in ("group", "split") if name in header}
    empty = True
    for fields in reader:
        if any(field.strip() for field in fields):
            if len(fields) <= max(places.values()):
                raise UserError(f"{path}, line {reader.line_num}: too few columns")
            yield reader.line_num, {name: fields[k].strip() for name, k in places.items()}
            empty = False
    if empty:
        raise UserError(f"{path} has no line beside its header")


def _lists(
    halves: Mapping[str, Sequence[Row]], *, root: Path, share: float, seed: int, notes: list[str]
) -> dict[str, Sequence[Row]]:
    """The lists to write. Only what has a class is tested on."""
    if "" not in halves:
        train = halves.get("train", [])
        if not train:
            raise UserError(f"folder: no training video in {root}")
        known = {row.class_name for row in train}
        splits: dict[str, Sequence[Row]] = {"train": train}
        for split in ("test", "val"):
            rows = halves.get(split, [])
            fit = [row for row in rows if row.class_name and row.class_name in known]
            if len(fit) < len(rows):
                count = len(rows) - len(fit)
                notes.append(f"left out of {split}: {count} videos of no class in training")
            if fit:
                splits[split if "test" in splits else "test"] = fit
        return splits

    rows = list(halves[""])
    if not any(row.class_name for row in rows):
        notes.append("no classes: train on train.csv with DATA.TEST_LIST ''")
        if any(root.glob("*.[ct]sv")):
            notes.append("a table of their classes is given by --labels TABLE.csv")
        return {"train": rows}
    # By group: clips of one source in both lists would let a test video be recognised by its scene.
    # What has no class is of no use in testing.
    named = [row for row in rows if row.class_name]
    held_out = hold_out(named, share=share, seed=seed)
    train = [row for row in rows if row.group not in held_out]
    test = [row for row in named if row.group in held_out]
    if share and not test:
        groups = len({row.group for row in rows})
        raise UserError(
            f"folder: cannot hold out any of {len(rows)} videos in {groups} groups under "
            f"{root}; change --test-share or --group-pattern (--test-share 0 writes train.csv only)"
        )
    absent = sorted({row.class_name for row in train} - {row.class_name for row in test} - {""})
    if test and absent:
        notes.append(f"no test video of {shorten(absent)}: too few groups")
    return {"train": train, "test": test} if test else {"train": train}


def _of_other_kinds(roots: Iterable[Path]) -> list[str]:
    """A note on videos that a user may expect in the lists and does not find there."""
    suffixes: Counter[str] = Counter()
    for root in roots:
        for _, _, names in os.walk(root, followlinks=True):
            suffixes.update(Path(name).suffix.lower() for name in names)
    other = [f"{suffixes[each]} {each}" for each in OTHER_SUFFIXES if suffixes[each]]
    if not other:
        return []
    count = sum(suffixes[each] for each in OTHER_SUFFIXES)
    read = sum(suffixes[each] for each in VIDEO_SUFFIXES)
    start = "warning: most videos are " if count > read else ""
    return [f"{start}left out, unsupported formats: {', '.join(other)}"]


def _warnings(
    train: Sequence[Row], *, seen: int, written: Mapping[str, Sequence[Row]]
) -> list[str]:
    """Sentences on lists that are hardly what was meant."""
    counts = Counter(row.class_name for row in train if row.class_name)
    found = []
    if len(counts) == 1:
        found.append(
            f"warning: one class only, {next(iter(counts))!r}: every prediction will be right; is "
            "--root the folder that holds the class folders?"
        )
    elif counts and median(counts.values()) == 1:
        found.append(
            f"warning: most of the {len(counts)} classes have one video; --class-level 1 takes the "
            "first folder of a path as its class"
        )
    if 2 * sum(map(len, written.values())) < seen:
        found.append(f"warning: most of the {seen} videos are in no list")
    return found


def hold_out(rows: Sequence[Row], *, share: float, seed: int) -> set[str]:
    """Groups, taken in random order, that bring each class nearer to its fraction `share`.

    A group goes whole, whatever classes its clips have. One whose clips would overshoot by more
    than they close the gap stays in training, and so does the last one of a class.
    """
    members: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        members[row.group].append(row.class_name)
    left = Counter(row.class_name for row in rows)
    gap = {name: share * count for name, count in left.items()}
    names = sorted(members)
    held_out = set()
    for index in numpy_generator(seed, "held-out groups").permutation(len(names)):
        counts = Counter(members[names[index]])
        nearer = sum(abs(gap[name] - n) - abs(gap[name]) for name, n in counts.items()) < 0
        if nearer and all(left[name] > n for name, n in counts.items()):
            held_out.add(names[index])
            left -= counts
            gap = {name: each - counts[name] for name, each in gap.items()}
    return held_out
