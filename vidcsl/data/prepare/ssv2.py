"""Something-Something V2 (Goyal et al., ICCV 2017; V2 2018): 220,847 videos, 174 classes.

The annotations are the published ones: `labels.json` with the classes, a JSON list for each split
(`train.json`, `validation.json`, `test.json`, also under their longer older names) and, for the
test split, `test-answers.csv` with lines `id;class`. Which videos one person filmed is not
published: the group is unknown.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from vidcsl.data.lists import Row
from vidcsl.data.prepare.annotated import check_classes, index_videos, read_json, read_text
from vidcsl.data.prepare.common import Report, write_splits
from vidcsl.errors import UserError


def prepare(
    *,
    root: str | Path,
    labels: Path,
    annotations: Sequence[Path],
    out: str | Path,
    classes: Sequence[str] = (),
    allow_missing: bool = False,
) -> Report:
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
    read = _read_answers if path.suffix == ".csv" else _read_split
    classes = {name: template.replace("[", "").replace("]", "") for name, template in read(path)}
    if not classes:
        raise UserError(f"{path} names no video")
    for name, label in classes.items():
        if label and label not in known:
            raise UserError(f"{path}: video {name} has the class {label!r}, not one of the labels")
    return classes


def _read_split(path: Path) -> list[tuple[str, str]]:
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
