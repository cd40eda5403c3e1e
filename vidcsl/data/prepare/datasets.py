"""Lists of UCF101, HMDB51, Kinetics and Something-Something V2 from their official files."""

import csv
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from vidcsl.data.lists import Row, read_rows, shorten
from vidcsl.data.prepare.lists import (
    ListReport,
    check_classes,
    check_disjoint,
    check_total,
    choose_classes,
    index_videos,
    read_json,
    read_text,
    shared_groups,
    without_repeats,
    write_splits,
)
from vidcsl.errors import UserError

# ----------------------------------------------------------------------
# What published data sets with fixed splits share: read their split files, check, write lists.

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


def prepare_official(
    dataset: Dataset,
    *,
    root: str | Path,
    splits: str | Path,
    out: str | Path,
    classes: Sequence[str] = (),
    subset: bool = False,
    allow_missing: bool = False,
) -> ListReport:
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


# ----------------------------------------------------------------------
# UCF101 (Soomro, Zamir, Shah 2012, arXiv:1212.0402): 13,320 videos, 101 classes, three splits.
#
# Each class has 25 groups, numbered within the class; a group's clips were cut from one source, and
# no group is in both training and test. The split files are the published ones: `classInd.txt`,
# `trainlist01.txt` to `trainlist03.txt` and `testlist01.txt` to `testlist03.txt`.

UCF101_TOTALS = {1: (9537, 3783), 2: (9586, 3734), 3: (9624, 3696)}


def read_ucf101(folder: Path, subset: bool) -> SplitFiles:
    """What `classInd.txt` and the lists of training and test videos say."""
    numbers = _read_classes(folder / "classInd.txt")
    present = (
        [k for k in UCF101_TOTALS if (folder / f"trainlist0{k}.txt").is_file()]
        if subset
        else UCF101_TOTALS
    )
    if not present:
        raise UserError(f"ucf101: {folder} holds no trainlist01.txt, trainlist02.txt, ...")
    splits = {
        k: (
            _read_split(folder / f"trainlist0{k}.txt", numbers),
            _read_split(folder / f"testlist0{k}.txt", numbers),
        )
        for k in present
    }
    videos = frozenset(row.video for halves in splits.values() for rows in halves for row in rows)
    return SplitFiles(classes=list(numbers), videos=videos, splits=splits)


UCF101 = Dataset(
    name="ucf101",
    read=read_ucf101,
    classes=101,
    videos=13320,
    totals=UCF101_TOTALS,
    group=(lambda row: row.group, "groups"),
)


def _read_classes(path: Path) -> dict[str, int]:
    """Class name to its number; lines `1 ApplyEyeMakeup`."""
    if not path.is_file():
        raise UserError(f"ucf101: {path} does not exist; --splits is the folder of classInd.txt")
    pairs = [line.split() for line in read_text(path).splitlines() if line.strip()]
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


# ----------------------------------------------------------------------
# HMDB51 (Kuehne, Jhuang, Garrote, Poggio, Serre, ICCV 2011): 6,766 clips, 51 classes, 3 splits.
#
# The split files are the published ones, `<class>_test_split<k>.txt` with lines `name.avi 0|1|2`:
# 1 is training (70 clips a class), 2 is test (30), 0 is neither.
#
# A clip is named `<source>_<class>_<body>_<camera>_np<people>_<view>_<quality>_<number>.avi`, so
# the text before the class names the film or the upload that it was cut from: the group. Within a
# class no source is in both training and test. Between classes it may be (a long film gives a
# handshake to training and a kiss to test), and the report counts those.

HMDB51_SPLITS = (1, 2, 3)
HMDB51_TRAIN, HMDB51_TEST = "1", "2"


def read_hmdb51(folder: Path, subset: bool) -> SplitFiles:
    """What the split files of every class say."""
    marks = {k: _hmdb51_read_split(folder, k) for k in HMDB51_SPLITS}
    if not any(marks.values()):
        raise UserError(f"hmdb51: {folder} holds no <class>_test_split<k>.txt")
    rows = [row for k in HMDB51_SPLITS for row in marks[k]]
    return SplitFiles(
        classes=sorted({row.class_name for row in rows}),
        videos=frozenset(row.video for row in rows),
        splits={
            k: (_marked(marks[k], HMDB51_TRAIN), _marked(marks[k], HMDB51_TEST))
            for k in HMDB51_SPLITS
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
    read=read_hmdb51,
    classes=51,
    videos=6766,
    totals=dict.fromkeys(HMDB51_SPLITS, (3570, 1530)),
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


def _hmdb51_read_split(splits: Path, k: int) -> dict[Row, str]:
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


# ----------------------------------------------------------------------
# Kinetics-400, -600 and -700 (Kay et al. 2017, arXiv:1705.06950; Carreira et al. 2018, 2019).
#
# The annotations are the published ones: CSV with the columns `label` (absent where it is secret),
# `youtube_id`, `time_start`, `time_end` and perhaps `split`, or JSON of the same content. A clip's
# file is looked for anywhere under the root, under the names that the common downloads give it.
# Clips of one YouTube video are a group. Videos vanish from YouTube: some of every copy is
# missing.

KINETICS_COLUMNS = ("youtube_id", "time_start", "time_end")
KINETICS_SPLITS = {"validate": "val", "validation": "val", "training": "train", "testing": "test"}


class Clip(NamedTuple):
    """One annotation; `start` and `end` are seconds of the YouTube video."""

    split: str
    label: str
    youtube_id: str
    start: float
    end: float

    def names(self) -> Iterator[str]:
        """The names that its file may have, without suffix, the usual one first."""
        start, end = int(self.start), int(self.end)
        yield f"{self.youtube_id}_{start:06d}_{end:06d}"
        yield f"{self.youtube_id}_{start}_{end}"
        yield f"{self.youtube_id}_{self.start:.1f}_{self.end:.1f}"
        yield self.youtube_id


def prepare_kinetics(
    *,
    root: str | Path,
    annotations: Sequence[Path],
    out: str | Path,
    classes: Sequence[str] = (),
    allow_missing: bool = False,
) -> ListReport:
    """Write a list for each split that the annotations name: `train.csv`, `val.csv`, `test.csv`.

    Args:
        root: the folder of the videos.
        annotations: the published files, CSV or JSON.
        out: where the lists go.
        classes: keep only these; all where empty.
        allow_missing: leave videos that are not on disk out of the lists.

    Raises:
        UserError: an annotation file is not what it should be, or videos are missing.
    """
    root = Path(root)
    clips = [clip for path in annotations for clip in read_clips(Path(path))]
    known = {clip.label for clip in clips}
    check_classes("kinetics", classes, known)
    videos = index_videos(root)
    splits: dict[str, list[Row]] = {}
    for clip in clips:
        if clip.label in (classes or known):
            splits.setdefault(clip.split, []).append(_row(clip, videos))
    kept, notes = without_repeats(splits)
    return write_splits(
        "kinetics",
        kept,
        root=root,
        out=out,
        allow_missing=allow_missing,
        read=annotations,
        notes=[*notes, *shared_groups(kept)],
    )


def read_clips(path: Path) -> list[Clip]:
    """The annotations of one file. Raises UserError where it has another form."""
    parse = _parse_json if path.suffix == ".json" else _parse_csv
    clips = list(parse(path))
    if not clips:
        raise UserError(f"{path} names no clip")
    return clips


def _row(clip: Clip, videos: Mapping[str, str]) -> Row:
    names = list(clip.names())
    place = next((videos[name] for name in names if name in videos), None)
    return Row(place or f"{clip.label}/{names[0]}.mp4", clip.label, clip.youtube_id)


def _parse_csv(path: Path) -> Iterator[Clip]:
    reader = csv.DictReader(read_text(path).splitlines())
    absent = [name for name in KINETICS_COLUMNS if name not in (reader.fieldnames or ())]
    if absent:
        raise UserError(f"{path}, line 1: no column {', '.join(absent)} of the Kinetics form")
    for entry in reader:
        times = entry["time_start"], entry["time_end"]
        where = f"{path}, line {reader.line_num}"
        yield _clip(where, entry.get("split"), entry.get("label"), entry["youtube_id"], times, path)


def _parse_json(path: Path) -> Iterator[Clip]:
    document = read_json(path)
    if not isinstance(document, dict):
        raise UserError(f"{path}: the Kinetics form is an object with a clip for each YouTube name")
    for name, entry in document.items():
        try:
            annotation = entry["annotations"]
            label, times = annotation.get("label"), tuple(annotation["segment"])
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: {name} has no annotations with a segment") from error
        # K700 names a video twice by adding the time to its name.
        yield _clip(f"{path}, {name}", entry.get("subset"), label, name[:11], times, path)


def _clip(
    where: str,
    split: str | None,
    label: str | None,
    youtube_id: str | None,
    times: Sequence[object],
    path: Path,
) -> Clip:
    try:
        start, end = (float(str(time)) for time in times)
    except ValueError as error:
        raise UserError(f"{where}: the times are not two numbers: {list(times)}") from error
    if not youtube_id:
        raise UserError(f"{where}: there is no youtube_id")
    name = split or path.stem.rpartition("_")[2]
    return Clip(KINETICS_SPLITS.get(name, name), (label or "").strip(), youtube_id, start, end)


# ----------------------------------------------------------------------
# Something-Something V2 (Goyal et al., ICCV 2017; V2 2018): 220,847 videos, 174 classes.
#
# The annotations are the published ones: `labels.json` with the classes, a JSON list for each split
# (`train.json`, `validation.json`, `test.json`, also under their longer older names) and, for the
# test split, `test-answers.csv` with lines `id;class`. Which videos one person filmed is not
# published: the group is unknown.


def prepare_ssv2(
    *,
    root: str | Path,
    labels: Path,
    annotations: Sequence[Path],
    out: str | Path,
    classes: Sequence[str] = (),
    allow_missing: bool = False,
) -> ListReport:
    """Write a list for each annotation file, named like it: `train.csv`, `validation.csv`, ...

    Args:
        root: the folder of the videos, `<id>.webm`.
        labels: `labels.json`, whose keys are the classes.
        annotations: of the splits, JSON or CSV.
        out: where the lists go.
        classes: keep only these; all where empty.
        allow_missing: leave videos that are not on disk out of the lists.

    Raises:
        UserError: an annotation file is not what it should be, or videos are missing.
    """
    root = Path(root)
    known = read_json(Path(labels))
    if not isinstance(known, dict):
        raise UserError(f"{labels}: expected an object with a number for each class")
    check_classes("ssv2", classes, known)
    videos = index_videos(root)
    kept = classes or [*known, ""]
    splits = {
        Path(path).stem.removeprefix("something-something-v2-"): [
            Row(videos.get(name, f"{name}.webm"), label)
            for name, label in _read(Path(path), known).items()
            if label in kept
        ]
        for path in annotations
    }
    return write_splits(
        "ssv2", splits, root=root, out=out, allow_missing=allow_missing, read=annotations
    )


def _read(path: Path, known: Mapping[str, object]) -> dict[str, str]:
    """The class of each video of a split; empty where it is secret."""
    read = _read_answers if path.suffix == ".csv" else _ssv2_read_split
    classes = {name: template.replace("[", "").replace("]", "") for name, template in read(path)}
    if not classes:
        raise UserError(f"{path} names no video")
    for name, label in classes.items():
        if label and label not in known:
            raise UserError(f"{path}: video {name} has the class {label!r}, not one of the labels")
    return classes


def _ssv2_read_split(path: Path) -> list[tuple[str, str]]:
    document = read_json(path)
    try:
        return [(str(entry["id"]), entry.get("template", "")) for entry in document]
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f'{path}: expected a list of {{"id": ..., "template": ...}}') from error


def _read_answers(path: Path) -> list[tuple[str, str]]:
    lines = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    for number, line in enumerate(lines, start=1):
        if ";" not in line:
            raise UserError(f"{path}, line {number}: expected 'id;class', found {line!r}")
    return [(name, label) for name, _, label in (line.partition(";") for line in lines)]
