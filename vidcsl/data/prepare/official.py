"""What published data sets with fixed splits share: read their split files, check, write lists."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vidcsl.data.lists import Row
from vidcsl.data.prepare.common import (
    Report,
    check_disjoint,
    check_total,
    choose_classes,
    write_splits,
)

Splits = Mapping[int, tuple[Sequence[Row], Sequence[Row]]]
"""The number of each split to its training and its test rows."""


@dataclass(frozen=True)
class SplitFiles:
    """What the split files of a data set say.

    Attributes:
        classes: that they name, in their order.
        videos: that any of them names, in whatever part.
        splits: the lists themselves.
    """

    classes: Sequence[str]
    videos: frozenset[str]
    splits: Splits


@dataclass(frozen=True)
class Dataset:
    """A published data set.

    Attributes:
        name: of the data set.
        read: the split files of a folder; `subset` allows for fewer splits than there should be.
        classes, videos: how many there are in all.
        totals: training and test videos of each split.
        group: what must not be in both halves of a split, and its name in plural.
        notes: what to say of the splits that were written.
    """

    name: str
    read: Callable[[Path, bool], SplitFiles]
    classes: int
    videos: int
    totals: Mapping[int, tuple[int, int]]
    group: tuple[Callable[[Row], str], str]
    notes: Callable[[Splits], Sequence[str]] = lambda _: ()


def prepare(
    dataset: Dataset,
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
        dataset: which one.
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
    root = Path(root)
    files = dataset.read(Path(splits), subset)
    group, groups = dataset.group
    for k, halves in files.splits.items():
        name = f"{dataset.name} split {k}"
        check_disjoint(name, *halves, key=lambda row: row.video, what="videos")
        check_disjoint(name, *halves, key=group, what=groups)
    if not subset:
        _check_totals(dataset, files)
    kept = choose_classes(files.classes, classes=classes, subset=subset, root=root)
    chosen = {
        k: (_of_classes(train, kept), _of_classes(test, kept))
        for k, (train, test) in files.splits.items()
    }
    return write_splits(
        dataset.name,
        {
            f"{part}_split{k}": rows
            for k, halves in chosen.items()
            for part, rows in zip(("train", "test"), halves, strict=True)
        },
        root=root,
        out=out,
        allow_missing=allow_missing,
        notes=dataset.notes(chosen),
    )


def _of_classes(rows: Sequence[Row], classes: Sequence[str]) -> list[Row]:
    return [row for row in rows if row.class_name in classes]


def _check_totals(dataset: Dataset, files: SplitFiles) -> None:
    check_total(f"{dataset.name} classes", found=len(files.classes), expected=dataset.classes)
    for k, expected in dataset.totals.items():
        for part, rows, number in zip(("training", "test"), files.splits[k], expected, strict=True):
            check_total(f"{dataset.name} split {k} {part} videos", found=len(rows), expected=number)
    check_total(f"{dataset.name} videos", found=len(files.videos), expected=dataset.videos)
