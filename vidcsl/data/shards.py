"""Videos inside tar files, on local disk or behind any fsspec URL, read one by one in any order.

The shards have WebDataset's form. WebDataset reads them in sequence; here a list gives the byte
range of each video. So the order of an epoch and the step at which a run resumes do not depend on
the shards, and the same bytes come at the same step as from files.
"""

import io
import os
import time
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TextIO, TypeVar

import fsspec

from vidcsl.errors import PassingError, UserError, VideoError

T = TypeVar("T")

PAUSES = (0.5, 2.0, 8.0)  # seconds between attempts: an object store may be busy for a moment
# After these, another attempt would not help.
_FINAL = (FileNotFoundError, IsADirectoryError, PermissionError, ValueError, ImportError)


@dataclass(frozen=True)
class Span:
    """The byte range of one video.

    Attributes:
        shard: the tar file, a path or a URL.
        offset, size: of the video's bytes in it.
        crc32: of these bytes. It detects a shard that is not the one the list was made with.
    """

    shard: str
    offset: int
    size: int
    crc32: int

    def read(self) -> bytes:
        """The video file.

        Raises:
            VideoError: these are not the bytes that were packed.
            UserError: the shard cannot be read. That is no fault of one video: to replace it by
                another, as a damaged one is, would make a run depend on the state of a network.
        """

        def fetch() -> bytes:
            # Looked up each time: fsspec keeps file systems for each process, and one that was
            # opened before a fork does not work after it.
            files, path = _located(self.shard)
            data: bytes = files.cat_file(path, start=self.offset, end=self.offset + self.size)
            if len(data) < self.size and is_url(self.shard):
                raise EOFError(f"{len(data)} of {self.size} bytes came")
            return data

        data = _with_retries(fetch, self.shard)
        if len(data) != self.size or zlib.crc32(data) != self.crc32:
            reason = f"not the bytes that were packed (offset {self.offset}, {len(data)} bytes)"
            raise VideoError(self.shard, reason)
        return data


def check_shards(spans: Iterable[Span]) -> None:
    """Raise a UserError if a shard is missing or too short for the videos in it."""
    ends: dict[str, int] = defaultdict(int)
    for span in spans:
        ends[span.shard] = max(ends[span.shard], span.offset + span.size)
    for shard, end in ends.items():

        def measure(shard: str = shard) -> int | None:
            files, path = _located(shard)
            size: int | None = files.size(path)  # None: the server does not report it
            return size

        size = _with_retries(measure, shard)
        if size is not None and size < end:
            raise UserError(
                f"the shard {shard} has {size} bytes, its list needs {end}: copy it again"
            )


def is_url(path: object) -> bool:
    """Whether this is an fsspec URL, and not a path on this machine."""
    return "://" in str(path)


def _located(place: str) -> tuple[Any, str]:
    """The fsspec file system of a URL, or of this machine, and the path in it.

    fsspec itself would take a file called a::b.tar for a chain of two file systems.
    """
    found: tuple[Any, str] = (
        fsspec.url_to_fs(place)
        if is_url(place)
        else (fsspec.filesystem("file"), os.path.abspath(place))
    )
    return found


def open_text(path: str) -> TextIO:
    """A text from a path or URL, its line ends as they are; read line by line, as it may be long.

    The byte-order mark that spreadsheets write is left out. What is no UTF-8 raises a
    UnicodeDecodeError where it is read.

    Raises:
        UserError: it is missing or cannot be read.
    """

    def fetch() -> BinaryIO:
        try:
            if not is_url(path):
                return Path(path).open("rb")
            files, place = fsspec.url_to_fs(path)
            return io.BytesIO(files.cat_file(place))
        except FileNotFoundError as error:
            raise UserError(f"the list {path} does not exist") from error

    return io.TextIOWrapper(_with_retries(fetch, path), encoding="utf-8-sig", newline="")


def _with_retries(read: Callable[[], T], path: str) -> T:
    """The result of `read`, tried again after each of `PAUSES`; UserError if it keeps failing.

    Libraries of object stores raise errors of many kinds for a connection that broke.
    """
    for pause in (*PAUSES, None):
        try:
            return read()
        except UserError:
            raise
        except Exception as error:
            final = isinstance(error, _FINAL)
            if pause is None or final:
                reason = str(error).partition("\n")[0] or type(error).__name__
                kind = UserError if final else PassingError
                raise kind(f"cannot read {path}: {reason}") from error
            time.sleep(pause)
    raise AssertionError("the last attempt returns or raises")
