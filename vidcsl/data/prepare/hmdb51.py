"""HMDB51 (Kuehne, Jhuang, Garrote, Poggio, Serre, ICCV 2011): 6,766 clips, 51 classes, 3 splits.

The split files are the published ones, `<class>_test_split<k>.txt` with lines `name.avi 0|1|2`:
1 is training (70 clips a class), 2 is test (30), 0 is neither.

A clip is named `<source>_<class>_<body>_<camera>_np<people>_<view>_<quality>_<number>.avi`, so the
text before the class names the film or the upload that it was cut from: the group. Within a class
no source is in both training and test. Between classes it may be (a long film gives a handshake to
training and a kiss to test), and the report counts those.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from vidcsl.data.lists import Row
from vidcsl.data.prepare.annotated import read_text
from vidcsl.data.prepare.official import Dataset, SplitFiles, Splits
from vidcsl.errors import UserError

SPLITS = (1, 2, 3)
TRAIN, TEST = "1", "2"


def read(folder: Path, subset: bool) -> SplitFiles:
    """What the split files of every class say."""
    marks = {k: _read_split(folder, k) for k in SPLITS}
    if not any(marks.values()):
        raise UserError(f"hmdb51: {folder} holds no <class>_test_split<k>.txt")
    rows = [row for k in SPLITS for row in marks[k]]
    return SplitFiles(
        classes=sorted({row.class_name for row in rows}),
        videos=frozenset(row.video for row in rows),
        splits={
            k: (_marked(marks[k], TRAIN), _marked(marks[k], TEST))
            for k in SPLITS
            if marks[k] or not subset
        },
    )


def _source_in_class(row: Row) -> str:
    return f"{row.class_name}/{row.group}"


def _shared_sources(splits: Splits) -> list[str]:
    """A line for each split whose halves have sources in common."""
    return [
        f"split {k}: {shared} sources give training and test clips, of different classes"
        for k, (train, test) in splits.items()
        if (shared := len({row.group for row in train} & {row.group for row in test}))
    ]


HMDB51 = Dataset(
    name="hmdb51",
    read=read,
    classes=51,
    videos=6766,
    totals=dict.fromkeys(SPLITS, (3570, 1530)),
    group=(_source_in_class, "sources"),
    notes=_shared_sources,
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


def _marked(marks: Mapping[Row, str], wanted: str) -> list[Row]:
    return [row for row, mark in marks.items() if mark == wanted]


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
    for line, text in enumerate(read_text(path).splitlines(), start=1):
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
