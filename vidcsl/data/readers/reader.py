"""What every reader does: numbered frames of one open video, as pixels."""

import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vidcsl.data.readers.source import Source
from vidcsl.errors import VideoError

Pixels = NDArray[np.uint8]
R = TypeVar("R", bound="Reader")


class UnsuitedError(VideoError):
    """This reader would number the frames of this file wrongly; PyAV can read it."""


class Reader(ABC):
    """An open video.

    Frame k is the k-th frame that the decoder puts out, in display order. A header's frame count
    may be wrong, and timestamps may not be monotonic (MPEG-4 B-frames in AVI): neither is believed.

    Attributes:
        name: of the reader, as it is chosen in a config.
        num_frames: how many frames can be decoded, indices 0 to `num_frames - 1`.
        fps: average frames per second; 0 where the file does not say.
        height, width: of the frames that `read` returns, pixels.
    """

    name: ClassVar[str]
    num_frames: int
    fps: float
    height: int
    width: int
    _video: Any = None  # the decoding library's handle, where it is kept open

    def __init__(self, source: Source, *, short_side: int | None = None) -> None:  # noqa: ARG002
        self.source = source

    @classmethod  # noqa: B027  (most readers need nothing more)
    def check_installed(cls) -> None:
        """Raise UserError where the library that this reader needs does not load."""

    def read(self, indices: ArrayLike) -> Pixels:
        """Decode frames.

        Args:
            indices: frame numbers [T], in any order; repeats are decoded once.

        Returns:
            RGB frames [T, H, W, 3], uint8, in the order of `indices`; their memory may be in
            another order.

        Raises:
            VideoError: a frame is beyond the file's end or cannot be decoded.
        """
        wanted = np.asarray(indices, dtype=np.int64)
        self._check_inside(wanted)
        if not wanted.size:
            return np.empty((0, self.height, self.width, 3), dtype=np.uint8)
        unique, place = np.unique(wanted, return_inverse=True)
        frames = self._decode(unique)
        return frames if np.array_equal(unique, wanted) else frames[place]

    def read_crops(
        self, clips: NDArray[np.int64], boxes: NDArray[np.int64], *, size: int
    ) -> Pixels:
        """Decode the views of a video, each cut out of its frames and resized.

        Args:
            clips: frame numbers [V, T].
            boxes: (top, left, height, width) of each view [V, 4], in pixels of what `read` returns.
            size: side S of the result.

        Returns:
            RGB views [V, 3, T, S, S], uint8, contiguous.

        Raises:
            VideoError: as `read`.
        """
        import torch  # here: processes that only look at files start without it
        from torchvision.transforms.v2.functional import resized_crop

        frames = torch.from_numpy(self.read(clips.reshape(-1))).permute(0, 3, 1, 2)
        views = [
            resized_crop(view, *box, size=[size, size], antialias=True)
            for view, box in zip(frames.unflatten(0, clips.shape), boxes.tolist(), strict=True)
        ]
        return torch.stack(views).transpose(1, 2).contiguous().numpy()

    @abstractmethod
    def _decode(self, indices: NDArray[np.int64]) -> Pixels:
        """The frames [T, H, W, 3] of strictly rising, valid indices."""

    def _check_inside(self, wanted: NDArray[np.int64]) -> None:
        outside = wanted[(wanted < 0) | (wanted >= self.num_frames)]
        if outside.size:
            raise VideoError(
                self.source.name, f"no frame {outside[0]}, it holds {self.num_frames} frames"
            )

    def close(self) -> None:
        """Let go of the file."""
        self._video = None

    def __enter__(self: R) -> R:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def scaled_size(height: int, width: int, *, short_side: int | None) -> tuple[int, int]:
    """(H, W) with the shorter side `short_side`, the longer rounded to the nearest pixel."""
    if short_side is None:
        return height, width
    scale = short_side / min(height, width)
    return math.floor(height * scale + 0.5), math.floor(width * scale + 0.5)
