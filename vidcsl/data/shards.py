"""Videos inside tar files, on local disk or behind any fsspec URL, read one by one in any order.

The shards have WebDataset's form. What WebDataset reads in sequence is read here by byte ranges
that the list names: so the order of an epoch, and where a resumed run goes on, are decided as for
files, and the same bytes come at the same step.
"""

import time
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import fsspec

from vidcsl.errors import PassingError, UserError, VideoError

Answer = TypeVar("Answer")

PAUSES = (0.5, 2.0, 8.0)  # seconds between attempts: an object store may be busy for a moment


@dataclass(frozen=True)
class Span:
    """Where the bytes of one video lie.

    Attributes:
        shard: the tar file, a path or a URL.
        offset, size: of the video's bytes in it.
        crc32: of these bytes. It finds a shard that is not the one the list was made with.
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
        data = self._fetch()
        if len(data) != self.size or zlib.crc32(data) != self.crc32:
            reason = f"not the bytes that were packed (offset {self.offset}, {len(data)} bytes)"
            raise VideoError(self.shard, reason)
        return data

    def _fetch(self) -> bytes:
        def get() -> bytes:
            # Looked up each time: fsspec keeps file systems for each process, and one that was
            # opened before a fork does not work after it.
            files, path = fsspec.url_to_fs(self.shard)
            data: bytes = files.cat_file(path, start=self.offset, end=self.offset + self.size)
            if len(data) < self.size and is_url(self.shard):
                raise EOFError(f"{len(data)} of {self.size} bytes came")
            return data

        return _with_patience(get, self.shard)


def check_shards(spans: Iterable[Span]) -> None:
    """Raise a UserError where a shard is missing or too short for what it should hold."""
    ends: dict[str, int] = defaultdict(int)
    for span in spans:
        ends[span.shard] = max(ends[span.shard], span.offset + span.size)
    for shard, end in ends.items():
        size = _with_patience(partial(_size, shard), shard)
        if size is not None and size < end:
            raise UserError(f"the shard {shard} has {size} bytes, its list needs {end}: copy anew")


def is_url(path: object) -> bool:
    """Whether this is an fsspec URL, and not a path on this machine."""
    return "://" in str(path)


def read_text(path: str) -> str:
    """A UTF-8 text from a path or URL, without the byte-order mark that spreadsheets write.

    Raises:
        UserError: it is missing, cannot be read or is no such text.
    """
    content = _with_patience(partial(_content, path), path)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {error.reason}") from error


def _size(shard: str) -> int | None:
    files, path = fsspec.url_to_fs(shard)
    size: int | None = files.size(path)
    return size


def _content(path: str) -> bytes:
    try:
        if not is_url(path):
            return Path(path).read_bytes()
        files, place = fsspec.url_to_fs(path)
        content: bytes = files.cat_file(place)
        return content
    except FileNotFoundError as error:
        raise UserError(f"the list {path} does not exist") from error


def _with_patience(read: Callable[[], Answer], path: str) -> Answer:
    """What `read` gives, tried again after each of `PAUSES`; UserError where it cannot be read.

    Libraries of object stores raise errors of many kinds for a connection that broke.
    """
    for pause in (*PAUSES, None):
        try:
            return read()
        except UserError:
            raise
        except Exception as error:
            if pause is None or isinstance(error, _FINAL):
                raise _unreadable(path, error) from error
            time.sleep(pause)
    raise AssertionError("the last attempt returns or raises")


# Another attempt would not help.
_FINAL = (FileNotFoundError, IsADirectoryError, PermissionError, ValueError, ImportError)


def _unreadable(path: str, error: Exception) -> UserError:
    reason = str(error).partition("\n")[0] or type(error).__name__
    kind = UserError if isinstance(error, _FINAL) else PassingError
    return kind(f"cannot read {path}: {reason}")
