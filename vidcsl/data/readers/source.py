"""Where a video's bytes are: in a file, in a folder of pictures, or in memory."""

import io
from dataclasses import dataclass
from pathlib import Path

from vidcsl.errors import VideoError


@dataclass(frozen=True)
class Source:
    """A video to open.

    Attributes:
        name: what messages call it; the path, unless the bytes are given.
        data: the whole file's bytes, as a sample of a tar shard has them; None: they are on disk.
    """

    name: str
    data: bytes | None = None

    @classmethod
    def of(cls, video: "str | Path | Source") -> "Source":
        """The source that a path stands for; a source stays what it is."""
        return video if isinstance(video, Source) else cls(str(video))

    @property
    def path(self) -> Path | None:
        """Where it is on disk; None for bytes in memory."""
        return Path(self.name) if self.data is None else None

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return Path(self.name).stat().st_size if self.data is None else len(self.data)

    def read(self) -> bytes:
        """All bytes of the file."""
        return Path(self.name).read_bytes() if self.data is None else self.data

    def read_at(self, place: int, size: int) -> bytes:
        """`size` bytes from byte `place` on."""
        if self.data is not None:
            return self.data[place : place + size]
        with Path(self.name).open("rb") as file:
            file.seek(place)
            return file.read(size)

    def as_argument(self) -> str | io.BytesIO:
        """What the decoding libraries take: a path, or a file object over the bytes."""
        return self.name if self.data is None else io.BytesIO(self.data)

    def check(self) -> None:
        """Raise VideoError where there is no file, or nothing in it."""
        if self.path is not None and not self.path.is_file():
            raise VideoError(self.name, "there is no such file")
        if self.size == 0:
            raise VideoError(self.name, "the file is empty")
