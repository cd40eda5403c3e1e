"""Lists of videos: which files, of which class, cut from which source.

Two forms are read. Ours is CSV with the header `video,class,group`, one video per line, its path
relative to a root folder; class and group may be empty. For videos in tar shards the columns
`shard,offset,size,crc32` follow. A list that ends in `.txt` has UCF101's published form:
`Class/v_Class_g01_c01.avi [number]`; the class is the folder, the group the file's name up to its
clip number.
"""

import csv
import hashlib
import io
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import NamedTuple

from vidcsl.data.readers import Source
from vidcsl.data.shards import Span, check_shards, is_url, read_text
from vidcsl.errors import UserError, VideoError
from vidcsl.io import file_state, replacing

COLUMNS = ("video", "class", "group")
SPAN_COLUMNS = ("shard", "offset", "size", "crc32")
VIDEO_SUFFIXES = (".avi", ".mp4", ".mkv", ".webm", ".mov", ".gif")
UCF_GROUP = re.compile(r"(?P<group>.+_g\d+)_c\d+")


class Row(NamedTuple):
    """One line of a list. An empty class means unlabelled, an empty group unknown."""

    video: str
    class_name: str = ""
    group: str = ""
    span: Span | None = None  # its shard is relative to the root


@dataclass(frozen=True)
class Video:
    """A video with its label and its group; clips of one group were cut from one source.

    `path` is the file. A video in a shard has a path, too, as if it were unpacked.
    """

    path: Path
    label: int = -1
    group: int = -1
    span: Span | None = None

    def source(self) -> Source:
        """What a reader opens. Raises as `Span.read` does if the video is packed."""
        return Source(str(self.path), self.span.read()) if self.span else Source.of(self.path)

    def identity(self) -> tuple[str | int, ...]:
        """What changes when the file changes. Raises VideoError if it is missing."""
        if self.span:
            return self.span.shard, self.span.offset, self.span.size, self.span.crc32
        try:
            return str(self.path.resolve()), file_state(self.path)
        except OSError as error:
            raise VideoError(self.path, "there is no such file") from error


@dataclass(frozen=True)
class VideoList:
    """Videos in the order of their list.

    Attributes:
        videos: their `label` counts along `classes` and their `group` along `groups`.
        classes, groups: names.
        source: the list's path.
        digest: of the videos, classes and groups that it names, in their order, whatever its form;
            empty for one that was not read from a file.
    """

    videos: tuple[Video, ...]
    classes: tuple[str, ...]
    source: str
    groups: tuple[str, ...] = ()
    digest: str = ""

    def __len__(self) -> int:
        return len(self.videos)

    def with_classes(self, classes: Sequence[str]) -> "VideoList":
        """The same videos, their labels counted along the same classes in another order."""
        place = {-1: -1} | {k: classes.index(name) for k, name in enumerate(self.classes)}
        videos = (replace(video, label=place[video.label]) for video in self.videos)
        return replace(self, videos=tuple(videos), classes=tuple(classes))


def read_list(
    path: str | Path, *, root: str | Path, classes: Sequence[str] | None = None
) -> VideoList:
    """Read a list and number its classes and groups.

    Args:
        path: the list, CSV or UCF101's `.txt`; a path or an fsspec URL.
        root: the folder that the list's paths are relative to: of the videos, or of the shards,
            which may be a URL.
        classes: the class names in label order, from the training list. None: the list's own
            classes, sorted by name.

    Raises:
        UserError: the list or the root is missing, a line is malformed or repeats a video, or a
            class is not among `classes`.
    """
    numbered = list(_numbered_rows(path))
    if not Path(root).is_dir() and not (is_url(root) and all(row.span for _, row in numbered)):
        why = "is a file, not a folder" if Path(root).exists() else "does not exist"
        raise UserError(f"the videos' folder {root} {why} (list {path})")
    names = {row.class_name for _, row in numbered} - {""}
    known = tuple(classes) if classes is not None else tuple(sorted(names))
    for line, row in numbered:
        if row.class_name and row.class_name not in known:
            raise UserError(
                f"{path}, line {line}: class {row.class_name!r} is not one of the "
                f"{len(known)} classes of the training list"
            )
    absent = [name for name in known if name not in names]
    if absent and names:
        warnings.warn(
            f"{path} has no video of {len(absent)} of {len(known)} classes: {shorten(absent)}",
            stacklevel=2,
        )
    label_of = {"": -1} | {name: label for label, name in enumerate(known)}
    groups = sorted({row.group for _, row in numbered} - {""})
    group_of = {"": -1} | {name: group for group, name in enumerate(groups)}
    folder = str(root).rstrip("/")
    videos = (
        Video(
            Path(root) / row.video,
            label_of[row.class_name],
            group_of[row.group],
            row.span and replace(row.span, shard=f"{folder}/{row.span.shard}"),
        )
        for _, row in numbered
    )
    return VideoList(
        videos=tuple(videos),
        classes=known,
        source=str(path),
        groups=tuple(groups),
        digest=_digest(row for _, row in numbered),
    )


def _digest(rows: Iterable[Row]) -> str:
    """Equal for lists whose rows name the same videos, classes and groups in the same order."""
    found = hashlib.sha256()
    for row in rows:
        fields = os.path.normpath(row.video), row.class_name, row.group
        found.update("\0".join((*fields, "")).encode(errors="surrogateescape"))
    return found.hexdigest()[:16]


def read_rows(path: str | Path) -> list[Row]:
    """The lines of a list as text; the videos need not exist. Raises like `read_list`."""
    return [row for _, row in _numbered_rows(path)]


def write_list(path: str | Path, rows: Iterable[Row | tuple[str, str, str]]) -> None:
    """Write a list in our CSV form, whole or not at all. Either all rows have a span or none.

    Raises:
        UserError: a name cannot be written so that it is read again.
    """
    lines: list[tuple[object, ...]] = []
    for row in (Row(*each) for each in rows):
        for text in row[: len(COLUMNS)]:
            if text != str(text).strip():
                raise UserError(f"{path}: {text!r} starts or ends with a blank, rename it")
            try:
                str(text).encode()
            except UnicodeEncodeError as error:
                raise UserError(f"{path}: {text!a} is not a name in UTF-8, rename it") from error
        lines.append(row[:-1] if row.span is None else (*row[:-1], *astuple(row.span)))
    packed = lines and len(lines[0]) > len(COLUMNS)
    header = (*COLUMNS, *SPAN_COLUMNS) if packed else COLUMNS
    with replacing(path) as partial, open(partial, "w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *lines])


def check_files(videos: Sequence[Video]) -> None:
    """Raise one UserError that counts the missing files and names the first; shards likewise."""
    check_shards(video.span for video in videos if video.span)
    missing = [video.path for video in videos if not video.span and not video.path.exists()]
    if not missing:
        return
    first = missing[0]
    twins = [first.with_suffix(s) for s in VIDEO_SUFFIXES if first.with_suffix(s).is_file()]
    hint = f" ({twins[0].name} is there: the list must name the files as they are)" if twins else ""
    raise UserError(f"{len(missing)} of {len(videos)} videos are missing, first {first}{hint}")


class Shared(NamedTuple):
    """What two lists have in common: paths of videos in the second, names of groups."""

    videos: tuple[str, ...]
    groups: tuple[str, ...]


def shared(one: VideoList, other: VideoList) -> Shared:
    """Videos and groups that stand in both lists.

    Videos are compared as files, not by their names: links and copies are the same video. A group
    counts within its class, because the films of HMDB51's published splits give clips of one class
    to training and of another to testing.
    """
    sizes: dict[object, list[Video]] = {}
    for video in one.videos:
        sizes.setdefault(_size_of(video), []).append(video)
    prints: dict[Path, object] = {}  # few are needed: only of files of one size

    def print_of(video: Video) -> object:
        if video.path not in prints:
            prints[video.path] = _print_of(video)
        return prints[video.path]

    both = [
        str(video.path)
        for video in other.videos
        if any(print_of(video) == print_of(twin) for twin in sizes.get(_size_of(video), ()))
    ]

    def groups(videos: VideoList) -> set[str]:
        known = {(each.label, each.group) for each in videos.videos if each.group >= 0}
        return {
            videos.groups[group] + (f" of {videos.classes[label]}" if label >= 0 else "")
            for label, group in known
        }

    return Shared(tuple(both), tuple(sorted(groups(one) & groups(other))))


def _size_of(video: Video) -> object:
    """Equal for equal files; itself for a folder of pictures, whose size says nothing."""
    if video.span:
        return video.span.size
    try:
        return os.path.realpath(video.path) if video.path.is_dir() else video.path.stat().st_size
    except OSError:  # `check_files` reports it
        return None


_PROBE = 2**16  # bytes


def _print_of(video: Video) -> object:
    """Tells files of one size apart: the bytes at the start, in the middle and at the end."""
    if video.span:
        return video.span.crc32  # without reading it, which may take a request
    if video.path.is_dir():
        return os.path.realpath(video.path)
    source = video.source()
    places = (0, max(0, (source.size - _PROBE) // 2), max(0, source.size - _PROBE))
    return hashlib.sha256(b"".join(source.read_at(at, _PROBE) for at in places)).digest()


def shorten(names: Sequence[object], *, most: int = 5) -> str:
    """The first few names in one line, with the count of the others."""
    text = ", ".join(str(name) for name in names[:most])
    return text if len(names) <= most else f"{text} and {len(names) - most} more"


def _numbered_rows(path: str | Path) -> Iterator[tuple[int, Row]]:
    """The rows with their line numbers. Raises UserError for any fault of the list itself."""
    parse = _parse_ucf if str(path).endswith(".txt") else _parse_csv
    seen: dict[str, int] = {}
    try:
        for line, row in parse(io.StringIO(read_text(str(path)), newline=""), path):
            # Two spellings of one path would be one video that is its own false negative.
            first = seen.setdefault(os.path.normpath(row.video), line)
            if first != line:
                raise UserError(f"{path}, line {line}: {row.video} is already in line {first}")
            yield line, row
    except csv.Error as error:
        raise UserError(f"{path} is not readable as CSV: {error}") from error
    if not seen:
        raise UserError(f"the list {path} contains no video")


def _parse_csv(lines: Iterable[str], path: str | Path) -> Iterator[tuple[int, Row]]:
    reader = csv.reader(lines)
    header = tuple(name.strip() for name in next(reader, ()))
    columns = (*COLUMNS, *SPAN_COLUMNS) if len(header) > len(COLUMNS) else COLUMNS
    if header and header != columns:
        raise UserError(
            f"{path}, line 1: the header must be {','.join(columns)}, not {','.join(header)}"
        )
    for fields in reader:
        if not any(field.strip() for field in fields):
            continue
        if len(fields) != len(columns) or not fields[0].strip():
            raise UserError(
                f"{path}, line {reader.line_num}: expected {','.join(columns)} "
                f"(class and group may be empty), found {','.join(fields)!r}"
            )
        video, class_name, group, *place = (field.strip() for field in fields)
        span = None
        if place:
            shard, *numbers = place
            if not shard or not all(number.isdecimal() for number in numbers):
                raise UserError(
                    f"{path}, line {reader.line_num}: expected {','.join(SPAN_COLUMNS)}, "
                    f"found {','.join(place)!r}"
                )
            span = Span(shard, *(int(number) for number in numbers))
        yield reader.line_num, Row(video, class_name, group, span)


def _parse_ucf(lines: Iterable[str], path: str | Path) -> Iterator[tuple[int, Row]]:
    for line, text in enumerate(lines, start=1):
        match = re.fullmatch(r"(?P<video>(?P<folder>[^/\s]+)/\S+)(\s+\d+)?", text.strip())
        if match:
            group = UCF_GROUP.fullmatch(Path(match["video"]).stem)
            yield line, Row(match["video"], match["folder"], group["group"] if group else "")
        elif text.strip():
            raise UserError(
                f"{path}, line {line}: expected 'Class/video.avi [number]', found {text.strip()!r}"
            )
