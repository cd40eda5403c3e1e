"""UCF101 (Soomro, Zamir, Shah 2012, arXiv:1212.0402): 13,320 videos, 101 classes, three splits.

Each class has 25 groups, numbered within the class; a group's clips were cut from one source, and
no group is in both training and test. The split files are the published ones: `classInd.txt`,
`trainlist01.txt` to `trainlist03.txt` and `testlist01.txt` to `testlist03.txt`.
"""

from collections.abc import Sequence
from pathlib import Path

from vidcsl.data.lists import Row, read_rows, shorten
from vidcsl.data.prepare.common import (
    Report,
    check_disjoint,
    check_total,
    choose_classes,
    write_splits,
)
from vidcsl.errors import UserError

CLASSES = 101
VIDEOS = 13320
TOTALS = {1: (9537, 3783), 2: (9586, 3734), 3: (9624, 3696)}  # training, test


def prepare(
    *,
    root: str | Path,
    splits: str | Path,
    out: str | Path,
    classes: Sequence[str] = (),
    subset: bool = False,
    allow_missing: bool = False,
) -> Report:
    """Write `train_split<k>.csv` and `test_split<k>.csv` from the published split files.

    Args:
        root: the folder that holds the class folders.
        splits: the folder of the split files.
        out: where the lists go.
        classes: keep only these; all where empty.
        subset: the split files or the root hold fewer classes: skip the known totals and keep the
            classes that have a folder.
        allow_missing: leave videos that are not on disk out of the lists.

    Raises:
        UserError: the split files are not what they should be, or videos are missing.
    """
    root, splits = Path(root), Path(splits)
    numbers = _read_classes(splits / "classInd.txt")
    present = [k for k in TOTALS if (splits / f"trainlist0{k}.txt").is_file()] if subset else TOTALS
    if not present:
        raise UserError(f"ucf101: {splits} holds no trainlist01.txt, trainlist02.txt, ...")
    lists = {
        f"{part}_split{k}": _read_split(splits / f"{part}list0{k}.txt", numbers)
        for k in present
        for part in ("train", "test")
    }
    for k in present:
        halves = lists[f"train_split{k}"], lists[f"test_split{k}"]
        name = f"ucf101 split {k}"
        check_disjoint(name, *halves, key=lambda row: row.video, what="videos")
        check_disjoint(name, *halves, key=lambda row: row.group, what="groups")
    if not subset:
        _check_totals(numbers, lists)
    kept = choose_classes(list(numbers), classes=classes, subset=subset, root=root)
    chosen = {name: [row for row in rows if row.class_name in kept] for name, rows in lists.items()}
    return write_splits("ucf101", chosen, root=root, out=out, allow_missing=allow_missing)


def _read_classes(path: Path) -> dict[str, int]:
    """Class name to its number; lines `1 ApplyEyeMakeup`."""
    if not path.is_file():
        raise UserError(f"ucf101: {path} does not exist; --splits is the folder of classInd.txt")
    pairs = [line.split() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    wrong = [" ".join(pair) for pair in pairs if len(pair) != 2 or not pair[0].isdecimal()]
    if wrong:
        raise UserError(f"{path}: expected lines 'number class', found {wrong[0]!r}")
    return {name: int(number) for number, name in pairs}


def _read_split(path: Path, numbers: dict[str, int]) -> list[Row]:
    """The rows of one split file, with class, class number and group checked."""
    rows = read_rows(path)
    unknown = [row.video for row in rows if row.class_name not in numbers]
    if unknown:
        raise UserError(f"{path}: the class is not in classInd.txt: {shorten(unknown, most=1)}")
    # The folder HandstandPushups holds files v_HandStandPushups_*, hence the folded case.
    odd = [
        row.video
        for row in rows
        if not row.group.casefold().startswith(f"v_{row.class_name}_g".casefold())
    ]
    if odd:
        raise UserError(f"{path}: not named v_<class>_g<group>_c<clip>: {shorten(odd, most=1)}")
    lines = (line.split() for line in path.read_text(encoding="utf-8-sig").splitlines())
    for line in lines:
        if len(line) == 2 and int(line[1]) != numbers[line[0].split("/")[0]]:
            raise UserError(f"{path}: {line[0]} has number {line[1]}, not as in classInd.txt")
    return rows


def _check_totals(numbers: dict[str, int], lists: dict[str, list[Row]]) -> None:
    check_total("ucf101 classes", found=len(numbers), expected=CLASSES)
    for k, (train, test) in TOTALS.items():
        found = len(lists[f"train_split{k}"]), len(lists[f"test_split{k}"])
        check_total(f"ucf101 split {k} training videos", found=found[0], expected=train)
        check_total(f"ucf101 split {k} test videos", found=found[1], expected=test)
    named = {row.video for rows in lists.values() for row in rows}
    check_total("ucf101 videos in all splits", found=len(named), expected=VIDEOS)
