"""What the data sets share: choose classes, check splits, find files, write lists, report."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from vidcsl.data.lists import VIDEO_SUFFIXES, Row, shorten, write_list
from vidcsl.errors import UserError


@dataclass(frozen=True)
class Report:
    """What was written and what was noticed; `print` shows it."""

    dataset: str
    lists: Mapping[Path, int]
    classes: tuple[str, ...]
    videos: int
    groups: int
    missing: tuple[Row, ...] = ()
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        counts = f"{len(self.classes)} classes, {self.videos} videos, {self.groups} groups"
        left_out = [f"left out: {describe_missing(self.missing)}"] if self.missing else []
        lines = [
            f"{self.dataset}: {counts}",
            *(f"{path}: {number} videos" for path, number in self.lists.items()),
            *left_out,
            *self.notes,
        ]
        return "\n  ".join(lines)


def choose_classes(
    known: Sequence[str], *, classes: Sequence[str], subset: bool, root: Path
) -> tuple[str, ...]:
    """The classes to keep, in the order of `known`.

    Args:
        known: every class that the split files name.
        classes: the ones asked for; all of them where it is empty.
        subset: keep only those that have a folder under `root`.
    """
    unknown = [name for name in classes if name not in known]
    if unknown:
        raise UserError(f"the split files have no class {shorten(unknown)}: see {shorten(known)}")
    asked = [name for name in known if name in (classes or known)]
    kept = [name for name in asked if not subset or (root / name).is_dir()]
    if not kept:
        raise UserError(f"{root} has no folder of the classes {shorten(asked)}")
    return tuple(kept)


def check_disjoint(
    name: str, train: Iterable[Row], test: Iterable[Row], *, key: Callable[[Row], str], what: str
) -> None:
    """Raise a UserError where both halves of a split share a value of `key`."""
    shared = sorted({key(row) for row in train} & {key(row) for row in test})
    if shared:
        raise UserError(
            f"{name}: {len(shared)} {what} are in both training and test: {shorten(shared)}"
        )


def check_total(what: str, *, found: int, expected: int) -> None:
    """Raise a UserError where official lists do not hold what they are known to hold."""
    if found != expected:
        raise UserError(
            f"{what}: {found} where the official lists have {expected} "
            "(pass --subset if the split files are cut to fewer classes)"
        )


def locate(videos: Iterable[str], *, root: Path) -> dict[str, str]:
    """The path under `root` of each listed video that is there.

    A copy with another suffix serves too, because transcoded copies keep the names. Each folder is
    listed once, which a network disk takes better than a question for each of 13,320 files.
    """
    wanted = [PurePosixPath(video) for video in videos]
    folders = {path.parent for path in wanted}
    files = {
        folder / file.name
        for folder in folders
        if (root / folder).is_dir()
        for file in (root / folder).iterdir()
    }
    candidates = {
        path: [path, *(path.with_suffix(suffix) for suffix in VIDEO_SUFFIXES)] for path in wanted
    }
    return {
        str(path): str(next(file for file in names if file in files))
        for path, names in candidates.items()
        if not files.isdisjoint(names)
    }


def refuse_overwriting(
    read: Sequence[Path], *, out: str | Path, names: Iterable[str] | None = None
) -> None:
    """Raise a UserError where lists to write would take the place of files that are read.

    Args:
        read: the files.
        out: the folder of the lists.
        names: of the lists, without suffix; those of the files where there are none.
    """
    stems = [Path(path).stem for path in read] if names is None else names
    written = {(Path(out) / f"{name}.csv").resolve() for name in stems}
    if own := [path for path in read if Path(path).resolve() in written]:
        raise UserError(f"--out {out} would overwrite {own[0]}: choose another folder")


def describe_missing(missing: Sequence[Row]) -> str:
    """One line: how many, of which classes, the first names."""
    classes = [f"{name} {count}" for name, count in Counter(r.class_name for r in missing).items()]
    names = shorten([row.video for row in missing], most=3)
    return f"{len(missing)} videos ({shorten(classes)}): {names}"


def write_splits(
    dataset: str,
    splits: Mapping[str, Sequence[Row]],
    *,
    root: Path,
    out: str | Path,
    allow_missing: bool,
    read: Sequence[Path] = (),
    notes: Sequence[str] = (),
) -> Report:
    """Write `<out>/<name>.csv` for each split, naming the files as they are under `root`.

    Raises:
        UserError: files are missing and that is not allowed, nothing is left of a list, or one
            would take the place of a file that was `read`. Then no list is written.
    """
    refuse_overwriting(read, out=out, names=splits)
    if not root.is_dir():
        raise UserError(f"{dataset}: the videos' folder {root} does not exist")
    wanted = {row.video: row for rows in splits.values() for row in rows}
    places = locate(wanted, root=root)
    missing = [row for video, row in wanted.items() if video not in places]
    if missing and not allow_missing:
        raise UserError(
            f"{dataset}: {root} lacks {describe_missing(missing)}; complete it, "
            "or pass --allow-missing to leave them out of the lists"
        )
    kept = {
        name: [row._replace(video=places[row.video]) for row in rows if row.video in places]
        for name, rows in splits.items()
    }
    empty = [name for name, rows in kept.items() if not rows]
    if empty:
        raise UserError(f"{dataset}: {root} has no video of the list {shorten(empty)}")
    for name, rows in kept.items():
        write_list(Path(out) / f"{name}.csv", rows)
    renamed = sum(video != place for video, place in places.items())
    suffixes = [f"{renamed} videos were found under another suffix"] if renamed else []
    present = [row for video, row in wanted.items() if video in places]
    return Report(
        dataset=dataset,
        lists={Path(out) / f"{name}.csv": len(rows) for name, rows in kept.items()},
        classes=tuple(sorted({row.class_name for row in present} - {""})),
        videos=len(present),
        groups=len({row.group for row in present} - {""}),
        missing=tuple(missing),
        notes=(*notes, *suffixes),
    )
