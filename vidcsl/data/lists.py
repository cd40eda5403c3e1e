"""Lists of videos: which files, of which class, cut from which source.

Two forms are read. Ours is CSV with the header `video,class,group`, one video per line, its path
relative to a root folder; class and group may be empty. For videos in tar shards the columns
`shard,offset,size,crc32` follow. A list that ends in `.txt` has UCF101's published form:
`Class/v_Class_g01_c01.avi [number]`; the class is the folder, the group the file's name up to its
clip number.
"""

import csv
import hashlib
import os
import re
import warnings
from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from itertools import chain, count, islice
from multiprocessing.context import get_spawning_popen
from multiprocessing.heap import BufferWrapper
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from vidcsl.data.readers import Source
from vidcsl.data.shards import Span, check_shards, is_url, open_text
from vidcsl.errors import UserError, VideoError
from vidcsl.io import file_state, replacing

COLUMNS = ("video", "class", "group")
SPAN_COLUMNS = ("shard", "offset", "size", "crc32")
VIDEO_SUFFIXES = (".avi", ".mp4", ".mkv", ".webm", ".mov", ".gif")
UCF_GROUP = re.compile(r"(?P<group>.+_g\d+)_c\d+")
# Lines that are read at once: so many stay in the processor's cache, and wake no garbage collector.
_BLOCK = 128


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

    videos: Sequence[Video]
    classes: tuple[str, ...]
    source: str
    groups: Sequence[str] = ()
    digest: str = ""

    def __len__(self) -> int:
        return len(self.videos)

    def with_classes(self, classes: Sequence[str]) -> "VideoList":
        """The same videos, their labels counted along the same classes in another order."""
        place = np.array([*(classes.index(name) for name in self.classes), -1], dtype=np.int32)
        if isinstance(self.videos, Columns):  # -1, no label, stays -1: the last place
            videos: Sequence[Video] = replace(
                self.videos, labels=Column(place[self.videos.labels.numbers])
            )
        else:
            videos = tuple(replace(each, label=int(place[each.label])) for each in self.videos)
        return replace(self, videos=videos, classes=tuple(classes))

    def chosen(self, indices: Sequence[int]) -> "VideoList":
        """The list of these videos alone, in this order."""
        if isinstance(self.videos, Columns):
            return replace(self, videos=self.videos.chosen(indices))
        return replace(self, videos=tuple(self.videos[index] for index in indices))


class Column:
    """Numbers that all processes share, however they are started.

    A forked process shares its parent's memory. One that is spawned, or forked from a server, gets
    what is pickled: of a plain array a copy, of this a handle of shared memory.
    """

    def __init__(self, numbers: NDArray[Any]) -> None:
        self.numbers = numbers
        self._shared: BufferWrapper | None = None

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> int:
        return int(self.numbers[index])

    def __reduce__(self) -> tuple[Any, ...]:
        if get_spawning_popen() is None or not len(self):  # pickled for a file or a pipe
            return Column, (self.numbers,)
        if self._shared is None:  # moved at the first need: a container's shared memory is scarce
            self._shared = BufferWrapper(self.numbers.nbytes)
            column = _attached(self._shared, self.numbers.dtype)
            column.numbers[:] = self.numbers
            self.numbers = column.numbers
        return _attached, (self._shared, self.numbers.dtype)


def _attached(shared: BufferWrapper, dtype: np.dtype[Any]) -> Column:
    """The column in shared memory, here or in a started process."""
    column = Column(np.frombuffer(shared.create_memoryview(), dtype))
    column._shared = shared
    return column


class Names(Sequence[str]):
    """Texts in one run of bytes. An object for each would take three times as much."""

    def __init__(self, texts: Iterable[str]) -> None:
        data, sizes, rest = bytearray(), array("i"), iter(texts)
        while block := [text.encode(errors="surrogateescape") for text in islice(rest, _BLOCK)]:
            data += b"".join(block)
            sizes.extend(map(len, block))
        self._data = Column(np.frombuffer(data or b"\0", np.uint8))
        self._ends = Column(np.cumsum([0, *sizes], dtype=np.int64))

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[k] for k in range(*index.indices(len(self)))]
        k = range(len(self))[index]  # raises IndexError
        data = self._data.numbers[self._ends[k] : self._ends[k + 1]]
        return data.tobytes().decode(errors="surrogateescape")


@dataclass(frozen=True)
class Spans:
    """Columns of `Span`."""

    shards: Names
    shard_of: Column
    offsets: Column
    sizes: Column
    checksums: Column

    def at(self, k: int) -> Span:
        """The span of the k-th video."""
        shard = self.shards[self.shard_of[k]]
        return Span(shard, self.offsets[k], self.sizes[k], self.checksums[k])


@dataclass(frozen=True, eq=False)
class Columns(Sequence[Video]):
    """The videos of a list that was read: columns, and an object only for one that is asked for.

    Ten million objects would take 6 GB; and a worker process that shares them copies each that it
    touches, because to look at an object is to write its count of references.

    Attributes:
        root: the folder of `names`.
        names: paths.
        labels, groups: of each, int32.
        spans: where they are packed; None: they are files.
        rows: which of them these videos are, in order; None: all.
    """

    root: Path
    names: Names
    labels: Column
    groups: Column
    spans: Spans | None = None
    rows: Column | None = None

    def __len__(self) -> int:
        return len(self.names) if self.rows is None else len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Video: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Video, ...]: ...
    def __getitem__(self, index: int | slice) -> Video | tuple[Video, ...]:
        if isinstance(index, slice):
            return tuple(self[k] for k in range(*index.indices(len(self))))
        k = range(len(self))[index]  # raises IndexError
        k = k if self.rows is None else self.rows[k]
        span = None if self.spans is None else self.spans.at(k)
        return Video(self.root / self.names[k], self.labels[k], self.groups[k], span)

    def chosen(self, indices: Sequence[int]) -> "Columns":
        """These videos alone, in this order; the columns are shared."""
        picked = np.asarray(indices, dtype=np.int64)
        if self.rows is not None:
            picked = self.rows.numbers[picked]
        return replace(self, rows=Column(picked))


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
    found, lines, hashes = hashlib.sha256(), array("q"), array("q")
    class_of, group_of, shard_of = array("i"), array("i"), array("i")
    places = (array("q"), array("q"), array("L"))
    # Numbered as they come, for now, and by name in the end.
    class_numbers = defaultdict[str, int](count().__next__, {"": -1})
    group_numbers = defaultdict[str, int](count().__next__, {"": -1})
    shard_numbers = defaultdict[str, int](count().__next__)

    def videos() -> Iterator[str]:
        """The names of the videos, one by one; what else their lines say goes into the columns."""
        for numbers, (names, classes_of_names, groups_of_names, *place) in _blocks(path):
            plain = _normal(names)
            words = chain.from_iterable(zip(plain, classes_of_names, groups_of_names, strict=True))
            found.update(("\0".join(words) + "\0").encode(errors="surrogateescape"))
            lines.extend(numbers)
            hashes.extend(map(hash, plain))
            class_of.extend(map(class_numbers.__getitem__, classes_of_names))
            group_of.extend(map(group_numbers.__getitem__, groups_of_names))
            if place:
                shard_of.extend(map(shard_numbers.__getitem__, place[0]))
                for column, texts in zip(places, place[1:], strict=True):
                    column.extend(map(int, texts))
            yield from names

    names = Names(videos())
    _refuse_repeats(path, names, np.array(hashes), lines)
    packed = len(shard_of) == len(names)
    if not Path(root).is_dir() and not (is_url(root) and packed):
        why = "is a file, not a folder" if Path(root).exists() else "does not exist"
        raise UserError(f"the videos' folder {root} {why} (list {path})")
    own = sorted(set(class_numbers) - {""})
    known = tuple(classes) if classes is not None else tuple(own)
    unknown = min((class_numbers[name] for name in set(own).difference(known)), default=None)
    if unknown is not None:
        line = lines[class_of.index(unknown)]
        raise UserError(
            f"{path}, line {line}: class {[*class_numbers][unknown + 1]!r} is not one of the "
            f"{len(known)} classes of the training list"
        )
    absent = [name for name in known if name not in class_numbers]
    if absent and own:
        warnings.warn(
            f"{path} has no video of {len(absent)} of {len(known)} classes: {shorten(absent)}",
            stacklevel=2,
        )
    groups = sorted(set(group_numbers) - {""})
    folder = str(root).rstrip("/")
    spans = Spans(
        Names(f"{folder}/{shard}" for shard in shard_numbers),
        Column(np.array(shard_of, dtype=np.int32)),
        Column(np.array(places[0], dtype=np.int64)),
        Column(np.array(places[1], dtype=np.int64)),
        Column(np.array(places[2], dtype=np.uint32)),
    )
    columns = Columns(
        root=Path(root),
        names=names,
        labels=_renumbered(class_of, class_numbers, known),
        groups=_renumbered(group_of, group_numbers, groups),
        spans=spans if packed else None,
    )
    return VideoList(
        videos=columns,
        classes=known,
        source=str(path),
        groups=Names(groups),
        digest=found.hexdigest()[:16],
    )


def _renumbered(column: "array[int]", numbers: Mapping[str, int], names: Sequence[str]) -> Column:
    """A column of `numbers` counted along `names` instead; -1 stays."""
    place = np.full(len(numbers), -1, dtype=np.int32)  # the last is that of -1
    for k, name in enumerate(names):
        if name in numbers:
            place[numbers[name]] = k
    return Column(place[np.array(column)])


def _refuse_repeats(
    path: str | Path, names: Names, hashes: NDArray[np.int64], lines: Sequence[int]
) -> None:
    """Raise a UserError where two lines name one video, which would be its own false negative.

    Args:
        path: of the list.
        names: of its videos.
        hashes: of the same names in their normal spelling; where they agree, names are compared.
        lines: of the videos.
    """
    ordered = np.sort(hashes)
    suspects = ordered[1:][ordered[1:] == ordered[:-1]]
    seen: dict[str, int] = {}
    for k in np.flatnonzero(np.isin(hashes, suspects)).tolist() if len(suspects) else ():
        first = seen.setdefault(os.path.normpath(names[k]), lines[k])
        if first != lines[k]:
            raise UserError(f"{path}, line {lines[k]}: {names[k]} is already in line {first}")


def read_rows(path: str | Path) -> list[Row]:
    """The lines of a list as text; the videos need not exist. Raises like `read_list`."""
    seen: dict[str, int] = {}
    rows = []
    for lines, columns in _blocks(path):
        plain = _normal(columns[0])
        for line, name, fields in zip(lines, plain, zip(*columns, strict=True), strict=True):
            # Two spellings of one path would be one video that is its own false negative.
            first = seen.setdefault(name, line)
            if first != line:
                raise UserError(f"{path}, line {line}: {fields[0]} is already in line {first}")
            video, class_name, group, *place = fields
            span = Span(place[0], *map(int, place[1:])) if place else None
            rows.append(Row(video, class_name, group, span))
    return rows


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


def _normal(names: Sequence[str]) -> Sequence[str]:
    """Paths in their normal spelling, which nearly all have: a search in all of them is faster."""
    joined = "\n".join(["", *names, ""])
    odd = any(sign in joined for sign in ("//", "/.", "\n.", "/\n"))
    return [*map(os.path.normpath, names)] if odd else names


def _blocks(path: str | Path) -> Iterator[tuple[Sequence[int], Sequence[Sequence[str]]]]:
    """The numbers of some lines and their columns, COLUMNS (and SPAN_COLUMNS); then of the next.

    Columns cost half the time of lines. Raises UserError for any fault of the list but repeats.
    """
    parse = _parse_ucf if str(path).endswith(".txt") else _parse_csv
    empty = True
    try:
        with open_text(str(path)) as lines:
            parsed = parse(lines, path)
            while block := list(islice(parsed, _BLOCK)):
                empty = False
                numbers, rows = zip(*block, strict=True)
                yield numbers, [[*map(str.strip, each)] for each in zip(*rows, strict=True)]
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {error.reason}") from error
    except csv.Error as error:
        raise UserError(f"{path} is not readable as CSV: {error}") from error
    if empty:
        raise UserError(f"the list {path} contains no video")


def _parse_csv(lines: Iterable[str], path: str | Path) -> Iterator[tuple[int, Sequence[str]]]:
    reader = csv.reader(lines)
    header = tuple(name.strip() for name in next(reader, ()))
    columns = (*COLUMNS, *SPAN_COLUMNS) if len(header) > len(COLUMNS) else COLUMNS
    if header and header != columns:
        raise UserError(
            f"{path}, line 1: the header must be {','.join(columns)}, not {','.join(header)}"
        )
    width, packed = len(columns), len(columns) > len(COLUMNS)
    for fields in reader:
        if len(fields) == width and fields[0].strip():
            if packed:
                shard, *numbers = place = [field.strip() for field in fields[len(COLUMNS) :]]
                if not shard or not all(map(str.isdecimal, numbers)):
                    raise UserError(
                        f"{path}, line {reader.line_num}: expected {','.join(SPAN_COLUMNS)}, "
                        f"found {','.join(place)!r}"
                    )
            yield reader.line_num, fields
        elif any(map(str.strip, fields)):
            raise UserError(
                f"{path}, line {reader.line_num}: expected {','.join(columns)} "
                f"(class and group may be empty), found {','.join(fields)!r}"
            )


def _parse_ucf(lines: Iterable[str], path: str | Path) -> Iterator[tuple[int, Sequence[str]]]:
    for line, text in enumerate(lines, start=1):
        match = re.fullmatch(r"(?P<video>(?P<folder>[^/\s]+)/\S+)(\s+\d+)?", text.strip())
        if match:
            group = UCF_GROUP.fullmatch(Path(match["video"]).stem)
            yield line, (match["video"], match["folder"], group["group"] if group else "")
        elif text.strip():
            raise UserError(
                f"{path}, line {line}: expected 'Class/video.avi [number]', found {text.strip()!r}"
            )
