"""torchcodec, an optional extra: it needs FFmpeg's shared libraries on the machine."""

import importlib.util
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vidcsl.data.readers.checked import CheckedReader
from vidcsl.data.readers.reader import Pixels, Source, UnsuitedError
from vidcsl.errors import UserError, VideoError


class TorchcodecReader(CheckedReader):
    """It numbers frames by their time stamps, so it is unsuited where these do not show the order.

    Its decoder conceals damage, so PyAV decodes the same frames beside it.
    Arguments and errors as for `PyavReader`.
    """

    name = "torchcodec"

    def __init__(self, source: Source, *, short_side: int | None = None) -> None:
        super().__init__(source, short_side=short_side)
        codec = _import_torchcodec()
        if not self._strict.in_time_order:
            raise UnsuitedError(source.name, "its time stamps do not show the frames' order")
        resize = [codec.transforms.Resize((self.height, self.width))] if short_side else []
        try:
            self._video = codec.decoders.VideoDecoder(
                source.name if source.data is None else source.data,
                dimension_order="NCHW",
                num_ffmpeg_threads=1,
                seek_mode="exact",
                transforms=resize,
            )
        except (RuntimeError, ValueError) as error:
            raise VideoError(source.name, f"torchcodec: {_one_line(error)}") from error
        if len(self._video) != self.num_frames:
            raise UnsuitedError(source.name, f"torchcodec counts {len(self._video)} frames")

    @classmethod
    def check_installed(cls) -> None:
        """Raise UserError where torchcodec is not there or does not load."""
        _import_torchcodec()

    def _unchecked(self, indices: NDArray[np.int64]) -> Pixels:
        try:
            frames = self._video.get_frames_at(indices.tolist()).data  # [T, 3, H, W]
        except (RuntimeError, ValueError, IndexError) as error:
            raise VideoError(self.source.name, f"torchcodec: {_one_line(error)}") from error
        return frames.permute(0, 2, 3, 1).numpy()


def _import_torchcodec() -> Any:
    if not importlib.util.find_spec("torchcodec"):
        raise UserError(
            "the reader torchcodec is not installed here: pip install 'vidcsl[torchcodec]', or set "
            "DATA.READER to auto"
        )
    try:
        import torchcodec.decoders
        import torchcodec.transforms
    except (RuntimeError, ImportError, OSError) as error:
        raise UserError(
            "torchcodec does not load here; it needs FFmpeg's shared libraries (Debian: apt "
            "install libavdevice59) and a torch that fits; or set DATA.READER to auto"
        ) from error
    return torchcodec


def _one_line(error: BaseException) -> str:
    """What went wrong, without the place in the C++ source."""
    first = str(error).strip().partition("\n")[0]
    return first.rpartition(".cpp:")[2].partition(", ")[2] or first or type(error).__name__
