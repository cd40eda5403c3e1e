"""Kinetics-400, -600 and -700 (Kay et al. 2017, arXiv:1705.06950; Carreira et al. 2018, 2019).

The annotations are the published ones: CSV with the columns `label` (absent where it is secret),
`youtube_id`, `time_start`, `time_end` and perhaps `split`, or JSON of the same content. A clip's
file is looked for anywhere under the root, under the names that the common downloads give it. Clips
of one YouTube video are a group. Videos vanish from YouTube: some of every copy is missing.
"""

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from vidcsl.data.lists import Row
from vidcsl.data.prepare.annotated import (
    check_classes,
    index_videos,
    read_json,
    read_text,
    shared_groups,
    without_repeats,
)
from vidcsl.data.prepare.common import Report, write_splits
from vidcsl.errors import UserError

COLUMNS = ("youtube_id", "time_start", "time_end")
SPLITS = {"validate": "val", "validation": "val", "training": "train", "testing": "test"}


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


def prepare(
    *,
    root: str | Path,
    annotations: Sequence[Path],
    out: str | Path,
    classes: Sequence[str] = (),
    allow_missing: bool = False,
) -> Report:
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
    absent = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
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
    return Clip(SPLITS.get(name, name), (label or "").strip(), youtube_id, start, end)
