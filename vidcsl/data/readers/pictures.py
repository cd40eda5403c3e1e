"""A folder of pictures, one per frame: the form in which many data sets are published."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vidcsl.data.readers.reader import READERS, Pixels, PixelShape, Reader, Source, scaled_size
from vidcsl.errors import VideoError
from vidcsl.io import is_hidden

if TYPE_CHECKING:  # torch is imported where it is used: `vidcsl prepare` starts without it
    from torch import Tensor

_SUFFIXES = (".jpg", ".jpeg", ".png")


@READERS.register("pictures", "a folder of .jpg or .png files, one per frame")
class PicturesReader(Reader):
    """The JPEG and PNG files of a folder, in the order of the numbers in their names.

    A folder has no frame rate: `fps` is 0. All pictures are scaled to the size of the first. Their
    pixels are taken for square.
    Arguments as for `open_reader`.

    Raises:
        VideoError: the folder holds no picture, or the first cannot be read.
    """

    name = "pictures"

    def __init__(
        self,
        source: Source,
        *,
        short_side: int | None = None,
        pixels: PixelShape = "stored",  # noqa: ARG002
    ) -> None:
        super().__init__(source)
        if source.path is None or not source.path.is_dir():
            raise VideoError(source.name, "it is not a folder of pictures")
        self._files = sorted(
            (
                path
                for path in source.path.iterdir()
                if path.suffix.lower() in _SUFFIXES and not is_hidden(path.name)
            ),
            key=_numbers_and_text,
        )
        if not self._files:
            raise VideoError(source.name, "the folder holds no .jpg or .png file")
        self.num_frames, self.fps = len(self._files), 0.0
        _, height, width = self._picture(0).shape
        self.height, self.width = scaled_size(height, width, short_side=short_side)

    def _decode(self, indices: NDArray[np.int64]) -> Pixels:
        import torch
        from torchvision.transforms.v2.functional import resize

        frames = torch.empty((3, len(indices), self.height, self.width), dtype=torch.uint8)
        for row, index in enumerate(indices.tolist()):
            picture = self._picture(index)
            frames[:, row] = resize(picture, [self.height, self.width], antialias=True)
        return frames.permute(1, 2, 3, 0).numpy()

    def _picture(self, index: int) -> "Tensor":
        """uint8 [3, H, W]."""
        import torch
        from torchvision.io import ImageReadMode, decode_image, read_file

        path = self._files[index]
        try:
            picture = decode_image(read_file(str(path)), ImageReadMode.RGB)
        except (RuntimeError, ValueError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise VideoError(path, f"not a readable picture ({reason})") from error
        # PNG may hold 16 bits a value; the upper 8 are the same picture.
        return picture if picture.dtype == torch.uint8 else (picture.int() >> 8).to(torch.uint8)


def _numbers_and_text(path: Path) -> list[tuple[int, str]]:
    """A key that sorts frame2 before frame10."""
    parts = re.split(r"(\d+)", path.name)
    return [(int(part), "") if part.isdigit() else (0, part) for part in parts]
