"""Lists of UCF101, HMDB51, Kinetics and Something-Something V2 from their official files.

One function makes the lists of one data set.
"""

import csv
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
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

# UCF101 (Soomro, Zamir, Shah 2012, arXiv:1212.0402): 13,320 videos, 101 classes, three splits -----

UCF101_TOTALS = {1: (9537, 3783), 2: (9586, 3734), 3: (9624, 3696)}  # training and test videos


def prepare_ucf101(
    *,
    root: str | Path,
    splits: str | Path,
    out: str | Path,
    classes: Sequence[str] = (),
    subset: bool = False,
    allow_missing: bool = False,
) -> ListReport:
    """Write `train_split<k>.csv` and `test_split<k>.csv` from the published split files.

    Each class has 25 groups, numbered within the class; a group's clips were cut from one source,
    and no group is in both training and test.

    Args:
        root: the folder that holds the class folders.
        splits: the folder of `classInd.txt`, `trainlist01.txt`, `testlist01.txt` and so on to 03.
        out: where the lists go.
        classes: keep only these; empty: all.
        subset: the split files or the root hold fewer classes: skip the known totals and keep the
            classes that have a folder.
        allow_missing: leave videos that are not on disk out of the lists.

    Raises:
        UserError: the split files are not what they should be, or videos are missing.
    """
    root, folder = Path(root), Path(splits)
    index = folder / "classInd.txt"  # lines `1 ApplyEyeMakeup`
    if not index.is_file():
        raise UserError(f"ucf101: {index} does not exist; --splits is the folder of classInd.txt")
    pairs = [line.split() for line in read_text(index).splitlines() if line.strip()]
    wrong = [" ".join(pair) for pair in pairs if len(pair) != 2 or not pair[0].isdecimal()]
    if wrong:
        raise UserError(f"{index}: expected lines 'number class', found {wrong[0]!r}")
    numbers = {name: int(number) for number, name in pairs}

    def read_half(path: Path) -> list[Row]:
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
        for line in map(str.split, path.read_text(encoding="utf-8-sig").splitlines()):
            if len(line) == 2 and int(line[1]) != numbers[line[0].split("/")[0]]:
                raise UserError(f"{path}: {line[0]} has number {line[1]}, not as in classInd.txt")
        return rows

    halves = {}
    for k in UCF101_TOTALS:
        train, test = (folder / f"{part}list0{k}.txt" for part in ("train", "test"))
        if train.is_file() or not subset:
            halves[k] = (read_half(train), read_half(test))
    if not halves:
        raise UserError(f"ucf101: {folder} holds no trainlist01.txt, trainlist02.txt, ...")
    _check_halves("ucf101", halves, group=lambda row: row.group, groups="groups")
    if not subset:
        check_total("ucf101 classes", found=len(numbers), expected=101)
        _check_totals("ucf101", halves, UCF101_TOTALS)
        videos = {row.video for both in halves.values() for half in both for row in half}
        check_total("ucf101 videos", found=len(videos), expected=13320)
    kept = choose_classes(list(numbers), classes=classes, subset=subset, root=root)
    lists = _lists_of(halves, kept)
    return write_splits("ucf101", lists, root=root, out=out, allow_missing=allow_missing)


# HMDB51 (Kuehne, Jhuang, Garrote, Poggio, Serre, ICCV 2011): 6,766 clips, 51 classes, 3 splits ----

HMDB51_TOTALS = dict.fromkeys((1, 2, 3), (3570, 1530))  # 70 and 30 clips of each class


def prepare_hmdb51(
    *,
    root: str | Path,
    splits: str | Path,
    out: str | Path,
    classes: Sequence[str] = (),
    subset: bool = False,
    allow_missing: bool = False,
) -> ListReport:
    """Write `train_split<k>.csv` and `test_split<k>.csv` from the published split files.

    The group is the source in a clip's name. Within a class no source is in both training and test.
    Between classes it may be (a long film gives a handshake to training and a kiss to test), and
    the report counts those.

    Args:
        root, out, classes, subset, allow_missing: as for `prepare_ucf101`.
        splits: the folder of the files `<class>_test_split<k>.txt` with lines `name.avi 0|1|2`: 1
            is training, 2 is test, 0 is neither.

    Raises:
        UserError: the split files are not what they should be, or videos are missing.
    """
    root, folder = Path(root), Path(splits)
    marks: dict[int, dict[Row, str]] = {k: {} for k in HMDB51_TOTALS}
    for k, found in marks.items():
        suffix = f"_test_split{k}.txt"
        for path in sorted(folder.glob(f"*{suffix}")):
            class_name = path.name.removesuffix(suffix)
            for line, text in enumerate(read_text(path).splitlines(), start=1):
                if not text.strip():
                    continue
                name, _, mark = text.strip().rpartition(" ")
                if mark not in ("0", "1", "2"):
                    raise UserError(
                        f"{path}, line {line}: expected 'name.avi 0|1|2', found {text!r}"
                    )
                try:
                    source = source_of(name.strip(), class_name)
                except ValueError as error:
                    raise UserError(f"{path}, line {line}: {error}") from error
                row = Row(f"{class_name}/{name.strip()}", class_name, source)
                if row in found:
                    raise UserError(f"{path}, line {line}: {name.strip()} is listed twice")
                found[row] = mark
    if not any(marks.values()):
        raise UserError(f"hmdb51: {folder} holds no <class>_test_split<k>.txt")
    halves = {
        k: tuple([row for row, mark in found.items() if mark == wanted] for wanted in ("1", "2"))
        for k, found in marks.items()
        if found or not subset
    }
    _check_halves(
        "hmdb51", halves, group=lambda row: f"{row.class_name}/{row.group}", groups="sources"
    )
    known = sorted({row.class_name for found in marks.values() for row in found})
    if not subset:
        check_total("hmdb51 classes", found=len(known), expected=51)
        _check_totals("hmdb51", halves, HMDB51_TOTALS)
        videos = {row.video for found in marks.values() for row in found}
        check_total("hmdb51 videos", found=len(videos), expected=6766)
    kept = choose_classes(known, classes=classes, subset=subset, root=root)
    lists, notes = _lists_of(halves, kept), []
    for k in halves:
        train, test = ({row.group for row in lists[f"{part}_split{k}"]} for part in _PARTS)
        if shared := len(train & test):
            notes.append(
                f"split {k}: {shared} sources give training and test clips, of different classes"
            )
    return write_splits(
        "hmdb51", lists, root=root, out=out, allow_missing=allow_missing, notes=notes
    )


def source_of(name: str, class_name: str) -> str:
    """The film or upload that a clip of HMDB51 was cut from; ValueError for another kind of name.

    A clip is named `<source>_<class>_<body>_<camera>_np<people>_<view>_<quality>_<number>.avi`.

    >>> source_of("TrumanShow_wave_f_nm_np1_fr_med_26.avi", "wave")
    'TrumanShow'
    """
    form = rf"(?P<source>.+)_{re.escape(class_name)}_[a-z]+_[a-z]+_np\d+_[a-z]+_[a-z]+_\d+"
    match = re.fullmatch(form, Path(name).stem)
    if not match:
        raise ValueError(f"{name} is not named <source>_{class_name}_<five tags>_<number>")
    return match["source"]


# The fixed splits of UCF101 and HMDB51 ------------------------------------------------------------

_PARTS = ("train", "test")
_Halves = Mapping[int, Sequence[Sequence[Row]]]  # training and test rows by the number of a split


def _check_halves(name: str, halves: _Halves, *, group: Callable[[Row], str], groups: str) -> None:
    for k, (train, test) in halves.items():
        split = f"{name} split {k}"
        check_disjoint(split, train, test, key=lambda row: row.video, what="videos")
        check_disjoint(split, train, test, key=group, what=groups)


def _check_totals(name: str, halves: _Halves, totals: Mapping[int, tuple[int, int]]) -> None:
    for k, expected in totals.items():
        for part, rows, number in zip(("training", "test"), halves[k], expected, strict=True):
            check_total(f"{name} split {k} {part} videos", found=len(rows), expected=number)


def _lists_of(halves: _Halves, classes: Sequence[str]) -> dict[str, list[Row]]:
    """The rows of some classes by the names of their lists."""
    return {
        f"{part}_split{k}": [row for row in rows if row.class_name in classes]
        for k, both in halves.items()
        for part, rows in zip(_PARTS, both, strict=True)
    }


# Kinetics-400, -600 and -700 (Kay et al. 2017, arXiv:1705.06950; Carreira et al. 2018, 2019) ------

KINETICS_COLUMNS = ("youtube_id", "time_start", "time_end")
KINETICS_SPLITS = {"validate": "val", "validation": "val", "training": "train", "testing": "test"}


def prepare_kinetics(
    *,
    root: str | Path,
    annotations: Sequence[Path],
    out: str | Path,
    classes: Sequence[str] = (),
    allow_missing: bool = False,
) -> ListReport:
    """Write a list for each split that the annotations name: `train.csv`, `val.csv`, `test.csv`.

    Clips of one YouTube video are a group. Videos vanish from YouTube, so every copy of Kinetics
    lacks some.

    Args:
        root: the folder of the videos, at any depth, under the names of the common downloads.
        annotations: the published files: CSV with the columns `label` (absent if it is secret),
            `youtube_id`, `time_start`, `time_end` and perhaps `split`, or JSON of the same content.
        out: where the lists go.
        classes: keep only these; empty: all.
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
            names = list(clip.file_names())
            found = next((videos[name] for name in names if name in videos), None)
            row = Row(found or f"{clip.label}/{names[0]}.mp4", clip.label, clip.youtube_id)
            splits.setdefault(clip.split, []).append(row)
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


class KineticsClip(NamedTuple):
    """One annotation; `start` and `end` are seconds of the YouTube video."""

    split: str
    label: str
    youtube_id: str
    start: float
    end: float

    def file_names(self) -> Iterator[str]:
        """The names that its file may have, without suffix, the usual one first."""
        start, end = int(self.start), int(self.end)
        yield f"{self.youtube_id}_{start:06d}_{end:06d}"
        yield f"{self.youtube_id}_{start}_{end}"
        yield f"{self.youtube_id}_{self.start:.1f}_{self.end:.1f}"
        yield self.youtube_id


def read_clips(path: Path) -> list[KineticsClip]:
    """The annotations of one file, CSV or JSON. Raises UserError if it has another form."""
    entries: list[tuple[str, str | None, str | None, str | None, Sequence[object]]] = []
    if path.suffix == ".json":
        document = read_json(path)
        if not isinstance(document, dict):
            raise UserError(f"{path}: the Kinetics form is an object with one clip per YouTube id")
        for name, entry in document.items():
            try:
                annotation = entry["annotations"]
                label, segment = annotation.get("label"), tuple(annotation["segment"])
            except (KeyError, TypeError, AttributeError) as error:
                raise UserError(f"{path}: {name} has no annotations with a segment") from error
            # K700 names a video twice by adding the time to its name.
            entries.append((f"{path}, {name}", entry.get("subset"), label, name[:11], segment))
    else:
        reader = csv.DictReader(read_text(path).splitlines())
        absent = [name for name in KINETICS_COLUMNS if name not in (reader.fieldnames or ())]
        if absent:
            raise UserError(f"{path}, line 1: no column {', '.join(absent)} of the Kinetics form")
        for line in reader:
            where, ends = f"{path}, line {reader.line_num}", (line["time_start"], line["time_end"])
            named = line.get("split"), line.get("label"), line["youtube_id"]
            entries.append((where, *named, ends))
    clips = []
    for where, split, label, youtube_id, times in entries:
        try:
            start, end = (float(str(time)) for time in times)
        except ValueError as error:
            raise UserError(f"{where}: the times are not two numbers: {list(times)}") from error
        if not youtube_id:
            raise UserError(f"{where}: youtube_id is missing")
        split = split or path.stem.rpartition("_")[2]
        split = KINETICS_SPLITS.get(split, split)
        clips.append(KineticsClip(split, (label or "").strip(), youtube_id, start, end))
    if not clips:
        raise UserError(f"{path} contains no clip")
    return clips


# Something-Something V2 (Goyal et al., ICCV 2017; V2 2018): 220,847 videos, 174 classes -----------


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

    The group is unknown: which videos one person filmed is not published.

    Args:
        root: the folder of the videos, `<id>.webm`.
        labels: `labels.json`, whose keys are the classes.
        annotations: of the splits: `train.json`, `validation.json`, `test.json`, also under their
            longer older names, and for the test split `test-answers.csv` with lines `id;class`.
        out: where the lists go.
        classes: keep only these; empty: all.
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
    splits: dict[str, list[Row]] = {}
    for path in map(Path, annotations):
        templates: dict[str, str] = {}  # by the name of the video; empty if it is secret
        if path.suffix == ".csv":
            lines = [line.strip() for line in read_text(path).splitlines() if line.strip()]
            for number, line in enumerate(lines, start=1):
                name, separator, template = line.partition(";")
                if not separator:
                    raise UserError(f"{path}, line {number}: expected 'id;class', found {line!r}")
                templates[name] = template
        else:
            document = read_json(path)
            try:
                templates = {str(entry["id"]): entry.get("template", "") for entry in document}
            except (KeyError, TypeError, AttributeError) as error:
                form = '{"id": ..., "template": ...}'
                raise UserError(f"{path}: expected a list of {form}") from error
        if not templates:
            raise UserError(f"{path} contains no video")
        rows = []
        for name, template in templates.items():
            label = template.replace("[", "").replace("]", "")
            if label and label not in known:
                raise UserError(
                    f"{path}: video {name} has the class {label!r}, not one of the labels"
                )
            if label in (classes or [*known, ""]):
                rows.append(Row(videos.get(name, f"{name}.webm"), label))
        splits[path.stem.removeprefix("something-something-v2-")] = rows
    return write_splits(
        "ssv2", splits, root=root, out=out, allow_missing=allow_missing, read=annotations
    )
