"""Videos inside tar files, on local disk or behind any fsspec URL, read one by one in any order.

The shards have WebDataset's form. What WebDataset reads in sequence is read here by byte ranges
that the list names: so the order of an epoch, and where a resumed run goes on, are decided as for
files, and the same bytes come at the same step.
"""

import time
import zlib
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import fsspec

from vidcsl.errors import UserError, VideoError

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
        for pause in (*PAUSES, None):
            try:
                # Looked up each time: fsspec keeps file systems for each process, and one that was
                # opened before a fork does not work after it.
                files, path = fsspec.url_to_fs(self.shard)
                data: bytes = files.cat_file(path, start=self.offset, end=self.offset + self.size)
                return data
            except (OSError, ValueError, ImportError) as error:
                if pause is None or isinstance(error, FileNotFoundError | ValueError | ImportError):
                    raise _unreadable(self.shard, error) from error
                time.sleep(pause)
        raise AssertionError("the last attempt returns or raises")


def check_shards(spans: Iterable[Span]) -> None:
    """Raise a UserError where a shard is missing or too short for what it should hold."""
    ends: dict[str, int] = defaultdict(int)
    for span in spans:
        ends[span.shard] = max(ends[span.shard], span.offset + span.size)
    for shard, end in ends.items():
        try:
            files, path = fsspec.url_to_fs(shard)
            size = files.size(path)
        except (OSError, ValueError, ImportError) as error:
            raise _unreadable(shard, error) from error
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
    try:
        if is_url(path):
            files, place = fsspec.url_to_fs(path)
            content: bytes = files.cat_file(place)
        else:
            content = Path(path).read_bytes()
        return content.decode("utf-8-sig")
    except FileNotFoundError as error:
        raise UserError(f"the list {path} does not exist") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {error.reason}") from error
    except (OSError, ValueError, ImportError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: str, error: Exception) -> UserError:
    reason = str(error).partition("\n")[0] or type(error).__name__
    return UserError(f"cannot read {path}: {reason}")
