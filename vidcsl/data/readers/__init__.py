"""Videos in, uint8 RGB frames out: the same frames whichever library decodes them.

`pyav.py` decodes by default, `frame_index.py` numbers the frames of a file.
"""

from vidcsl.data.readers.checked import DecordReader, TorchcodecReader
from vidcsl.data.readers.pictures import PicturesReader
from vidcsl.data.readers.pyav import PyavReader
from vidcsl.data.readers.reader import (
    READERS,
    PixelShape,
    Reader,
    Source,
    open_reader,
    scaled_size,
)

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
