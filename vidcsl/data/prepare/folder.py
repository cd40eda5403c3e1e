"""Lists of any folder of videos: `ROOT/<class>/*.mp4`, or `ROOT/*.mp4` without labels."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from vidcsl.data.lists import VIDEO_SUFFIXES, Row, shorten
from vidcsl.data.prepare.lists import (
    GROUP_PATTERN,
    ListReport,
    choose_classes,
    compile_pattern,
    group_of,
    write_splits,
)
from vidcsl.errors import UserError
from vidcsl.io import is_hidden
from vidcsl.seeding import numpy_generator

# Of videos that a list may not name.
OTHER_SUFFIXES = (".3gp", ".flv", ".m4v", ".mpeg", ".mpg", ".mts", ".ogv", ".ts", ".wmv")


def prepare_folder(
    *,
    root: str | Path,
    out: str | Path,
    test_share: float = 0.25,
    group_pattern: str = GROUP_PATTERN,
    classes: Sequence[str] = (),
    seed: int = 0,
) -> ListReport:
    """Write `train.csv` and, if a fraction is held out, `test.csv`.

    Args:
        root: holds the class folders, or the videos themselves.
        out: where the lists go.
        test_share: the fraction of each class to hold out, as near as whole groups allow, in
            [0, 1).
        group_pattern: a regular expression searched in each path under the root, as in
            `class/name.mp4`; its first bracket is the group. A path without a match is a group of
            its own.
        classes: keep only these folders; empty: all.
        seed: draws which groups are held out.

    Raises:
        UserError: nothing is found, the pattern or the fraction is wrong, or nothing can be held
            out.
    """
    root, pattern = Path(root), compile_pattern(group_pattern)
    if not 0 <= test_share < 1:
        raise UserError(f"folder: the test share must be in [0, 1), not {test_share}")
    if not root.is_dir():
        raise UserError(f"folder: {root} does not exist")
    paths = sorted([*root.glob("*"), *root.glob("*/*")])
    rows, hidden, broken = [], 0, []
    first_of: dict[tuple[int, int], Path] = {}  # by file: links would put it into both lists
    links: list[tuple[Path, Path]] = []
    for path in paths:
        if path.suffix.lower() not in VIDEO_SUFFIXES:
            continue
        video = path.relative_to(root)
        if is_hidden(video):
            hidden += 1
        elif path.is_symlink() and not path.exists():
            broken.append(video)
        elif path.is_file():
            state = path.stat()
            first = first_of.setdefault((state.st_dev, state.st_ino), video)
            if first == video:
                group = group_of(video.as_posix(), pattern)
                rows.append(Row(video.as_posix(), video.parent.name, group))
            else:
                links.append((video, first))
    if not rows:
        raise UserError(
            f"folder: no video ({', '.join(VIDEO_SUFFIXES)}) in {root} or the folders in it"
        )
    if classes:
        known = sorted({row.class_name for row in rows} - {""})
        kept = choose_classes(known, classes=classes, subset=False, root=root)
        rows = [row for row in rows if row.class_name in kept]

    # By group: clips of one source in both lists would let a test video be recognised by its scene.
    held_out = hold_out(rows, share=test_share, seed=seed)
    train = [row for row in rows if row.group not in held_out]
    test = [row for row in rows if row.group in held_out]
    if test_share and not test:
        groups = len({row.group for row in rows})
        raise UserError(
            f"folder: nothing can be held out of {len(rows)} videos in {groups} groups under "
            f"{root}; change --test-share or --group-pattern (--test-share 0 writes train.csv only)"
        )

    # Notes on what a user may expect in the lists and does not find there.
    notes = []
    absent = sorted({row.class_name for row in train} - {row.class_name for row in test})
    if test and absent:
        notes.append(f"no test video of {shorten(absent)}: too few groups")
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
    deeper = sum(path.suffix.lower() in VIDEO_SUFFIXES for path in root.glob("*/*/*"))
    if deeper:
        notes.append(f"left out: {deeper} videos in folders of the class folders")
    suffixes = Counter(path.suffix.lower() for path in paths)
    other = [f"{suffixes[each]} {each}" for each in OTHER_SUFFIXES if suffixes[each]]
    if other:
        notes.append(f"left out, kinds that are not read: {', '.join(other)}")
    splits = {"train": train} | ({"test": test} if test else {})
    return write_splits("folder", splits, root=root, out=out, allow_missing=False, notes=notes)


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
