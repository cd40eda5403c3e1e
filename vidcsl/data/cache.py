"""Decoded frames kept on disk, for small sets that are trained on for many epochs.

A frame is stored as it would have been decoded, so whole frames are the same bytes with and without
the cache. Crops are cut from these frames, where a decoder cuts them from the file's own pixels:
there a training with a cache is another one than without. It costs `3 * H * W` bytes a frame: for a
ten-class cut of UCF101 at short side 64, 2 GB.
"""

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vidcsl.data.lists import Video
from vidcsl.data.readers import Reader, Source, open_reader
from vidcsl.seeding import seed_of


class CachedReader(Reader):
    """Reads frames that `fill` has stored; only those asked for are fetched from the disk."""

    name = "cache"

    def __init__(self, path: Path, stored: Path) -> None:
        super().__init__(Source.of(path))
        self._video = np.load(stored, mmap_mode="r", allow_pickle=False)
        self.num_frames, self.height, self.width, _ = self._video.shape
        self.fps = json.loads(stored.with_suffix(".json").read_text())["fps"]

    def _decode(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        frames: NDArray[np.uint8] = self._video[indices]
        return frames


def cached_opener(
    video: Video, *, folder: Path, backend: str, short_side: int
) -> Callable[[], Reader]:
    """What opens a video through the cache; the first time, it is decoded whole and stored.

    Bytes that are to be decoded are fetched by this call, and not by what it returns.

    Args:
        video: from a list.
        folder: of the cache; may be shared by processes and runs.
        backend, short_side: as in `open_reader`. Other values, or a changed file, are stored anew.

    Raises:
        VideoError: there is no such file; what is returned raises as `open_reader`, and where any
            frame of the video cannot be decoded.
    """
    key = seed_of(*video.identity(), backend, short_side)
    stored = folder / f"{video.path.stem}-{key:016x}.npy"
    if stored.exists():
        return partial(CachedReader, video.path, stored)
    source = video.source()

    def open_filled() -> Reader:
        fill(source, stored, backend=backend, short_side=short_side)
        return CachedReader(video.path, stored)

    return open_filled


def fill(source: Source, stored: Path, *, backend: str, short_side: int) -> None:
    """Decode a whole video into `stored`, which appears only when it is complete."""
    with open_reader(source, backend=backend, short_side=short_side) as reader:
        frames, fps = reader.read(range(reader.num_frames)), reader.fps
    stored.parent.mkdir(parents=True, exist_ok=True)
    # Named by process: two workers may store the same video at once, and either copy will do.
    unfinished = stored.with_suffix(f".{os.getpid()}.partial")
    unfinished.write_text(json.dumps({"fps": fps}))
    unfinished.replace(stored.with_suffix(".json"))
    with unfinished.open("wb") as file:
        np.save(file, frames)
    unfinished.replace(stored)
