"""Videos in, uint8 RGB frames out: the same frames whichever library decodes them.

`pyav.py` decodes by default, `frame_index.py` numbers the frames of a file.
"""

from pathlib import Path

from vidcsl.data.readers.checked import DecordReader, TorchcodecReader
from vidcsl.data.readers.pictures import PicturesReader
from vidcsl.data.readers.pyav import PyavReader
from vidcsl.data.readers.reader import (
    READERS,
    PixelShape,
    Reader,
    Source,
    UnsuitedError,
    scaled_size,
)
from vidcsl.errors import UserError

__all__ = [
    "READERS",
    "DecordReader",
    "PicturesReader",
    "PixelShape",
    "PyavReader",
    "Reader",
    "Source",
    "TorchcodecReader",
    "open_reader",
    "scaled_size",
]


def open_reader(
    video: str | Path | Source,
    *,
    backend: str = "auto",
    short_side: int | None = None,
    pixels: PixelShape = "stored",
) -> Reader:
    """Open a video; the `name` of the result is that of the reader that was used.

    Args:
        video: the path of a file or of a folder of pictures, or a `Source` that holds the bytes.
        backend: a name in `READERS`.
        short_side: scale (up or down) so that the shorter side has this many pixels, the aspect
            kept and the longer side rounded to the nearest pixel; None keeps the file's size.
        pixels: "square" stretches frames whose pixels are not square to the width at which they are
            to be shown; "stored" leaves them, and says so in the reader's `notes`.

    Raises:
        VideoError: the file is missing or is no video that can be opened.
        UserError: the backend is unknown or not installed.
    """
    if backend not in READERS:
        raise UserError(f"unknown video reader {backend!r}: choose {', '.join(READERS)}")
    source = Source.of(video)
    try:
        reader: Reader = READERS[backend](source, short_side=short_side, pixels=pixels)
    except UnsuitedError:
        reader = PyavReader(source, short_side=short_side, pixels=pixels)
    return reader
