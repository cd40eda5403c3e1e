"""HMDB51 (Kuehne, Jhuang, Garrote, Poggio, Serre, ICCV 2011): 6,766 clips, 51 classes, 3 splits.

The split files are the published ones, `<class>_test_split<k>.txt` with lines `name.avi 0|1|2`:
1 is training (70 clips a class), 2 is test (30), 0 is neither.

A clip is named `<source>_<class>_<body>_<camera>_np<people>_<view>_<quality>_<number>.avi`, so the
text before the class names the film or the upload that it was cut from: the group. Within a class
no source is in both training and test. Between classes it may be (a long film gives a handshake to
training and a kiss to test), and the report counts those.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from vidcsl.data.lists import Row
from vidcsl.data.prepare.common import (
    Report,
    check_disjoint,
    check_total,
    choose_classes,
    write_splits,
)
from vidcsl.errors import UserError

CLASSES = 51
VIDEOS = 6766
TRAIN, TEST = 3570, 1530
SPLITS = (1, 2, 3)
PARTS = {"train": "1", "test": "2"}


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

    The arguments and errors are those of `ucf101.prepare`.
    """
    root, splits = Path(root), Path(splits)
    marks = {k: _read_split(splits, k) for k in SPLITS}
    present = [k for k in SPLITS if marks[k]] if subset else list(SPLITS)
    if not any(marks.values()):
        raise UserError(f"hmdb51: {splits} holds no <class>_test_split<k>.txt")
    lists = {
        f"{part}_split{k}": [row for row, mark in marks[k].items() if mark == PARTS[part]]
        for k in present
        for part in PARTS
    }
    for k in present:
        # The names of one class stand in one file, whose repeats were found when it was read.
        halves = lists[f"train_split{k}"], lists[f"test_split{k}"]
        check_disjoint(f"hmdb51 split {k}", *halves, key=_source_in_class, what="sources")
    known = sorted({row.class_name for k in present for row in marks[k]})
    if not subset:
        _check_totals(known, marks, lists)
    kept = choose_classes(known, classes=classes, subset=subset, root=root)
    chosen = {name: [row for row in rows if row.class_name in kept] for name, rows in lists.items()}
    notes = [
        f"split {k}: {shared} sources give training and test clips, of different classes"
        for k in present
        if (shared := len(_groups(chosen[f"train_split{k}"]) & _groups(chosen[f"test_split{k}"])))
    ]
    return write_splits(
        "hmdb51", chosen, root=root, out=out, allow_missing=allow_missing, notes=notes
    )


def source_of(name: str, class_name: str) -> str:
    """The source in a clip's name; raises ValueError where the name has another form.

    >>> source_of("TrumanShow_wave_f_nm_np1_fr_med_26.avi", "wave")
    'TrumanShow'
    """
    form = rf"(?P<source>.+)_{re.escape(class_name)}_[a-z]+_[a-z]+_np\d+_[a-z]+_[a-z]+_\d+"
    match = re.fullmatch(form, Path(name).stem)
    if not match:
        raise ValueError(f"{name} is not named <source>_{class_name}_<five tags>_<number>")
    return match["source"]


def _read_split(splits: Path, k: int) -> dict[Row, str]:
    """Every clip that split `k` names, with its mark."""
    suffix = f"_test_split{k}.txt"
    paths = sorted(splits.glob(f"*{suffix}"))
    return {
        row: mark
        for path in paths
        for row, mark in _read_file(path, class_name=path.name.removesuffix(suffix)).items()
    }


def _read_file(path: Path, *, class_name: str) -> dict[Row, str]:
    marks: dict[Row, str] = {}
    for line, text in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not text.strip():
            continue
        name, _, mark = text.strip().rpartition(" ")
        if mark not in ("0", "1", "2"):
            raise UserError(f"{path}, line {line}: expected 'name.avi 0|1|2', found {text!r}")
        try:
            source = source_of(name.strip(), class_name)
        except ValueError as error:
            raise UserError(f"{path}, line {line}: {error}") from error
        row = Row(f"{class_name}/{name.strip()}", class_name, source)
        if row in marks:
            raise UserError(f"{path}, line {line}: {name.strip()} is named twice")
        marks[row] = mark
    return marks


def _source_in_class(row: Row) -> str:
    return f"{row.class_name}/{row.group}"


def _groups(rows: Iterable[Row]) -> set[str]:
    return {row.group for row in rows}


def _check_totals(
    known: Sequence[str], marks: dict[int, dict[Row, str]], lists: dict[str, list[Row]]
) -> None:
    check_total("hmdb51 classes", found=len(known), expected=CLASSES)
    for k in SPLITS:
        check_total(f"hmdb51 split {k} named videos", found=len(marks[k]), expected=VIDEOS)
        train, test = len(lists[f"train_split{k}"]), len(lists[f"test_split{k}"])
        check_total(f"hmdb51 split {k} training videos", found=train, expected=TRAIN)
        check_total(f"hmdb51 split {k} test videos", found=test, expected=TEST)
