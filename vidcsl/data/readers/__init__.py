"""Videos in, uint8 RGB frames out: the same frames whichever library decodes them."""

from pathlib import Path

from vidcsl.data.readers.decord import DecordReader
from vidcsl.data.readers.pictures import PicturesReader
from vidcsl.data.readers.pyav import PyavReader
from vidcsl.data.readers.reader import Reader, Source, UnsuitedError, scaled_size
from vidcsl.data.readers.torchcodec import TorchcodecReader
from vidcsl.errors import UserError

__all__ = ["READERS", "Reader", "Source", "open_reader", "scaled_size"]

READERS: dict[str, type[Reader]] = {
    "pyav": PyavReader,
    "decord": DecordReader,
    "torchcodec": TorchcodecReader,
    "pictures": PicturesReader,
}


def open_reader(
    video: str | Path | Source, *, backend: str = "auto", short_side: int | None = None
) -> Reader:
    """Open a video; the reader's `name` says who reads it.

    Args:
        video: the path of a file or of a folder of pictures, or a `Source` that holds the bytes.
        backend: a name in `READERS`, or "auto": PyAV, which is right for every file and the
            fastest that reports damage, or pictures for a folder.
        short_side: scale (up or down) so that the shorter side has this many pixels, the aspect
            kept and the longer side rounded to the nearest pixel; None keeps the file's size.

    Raises:
        VideoError: the file is missing or is no video that can be opened.
        UserError: the backend is unknown or not installed.
    """
    if backend not in ("auto", *READERS):
        raise UserError(f"unknown video reader {backend!r}: choose auto or one of {list(READERS)}")
    source = Source.of(video)
    if backend == "auto":
        backend = "pictures" if source.path is not None and source.path.is_dir() else "pyav"
    try:
        return READERS[backend](source, short_side=short_side)
    except UnsuitedError:
        return PyavReader(source, short_side=short_side)
