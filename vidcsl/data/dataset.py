"""One sample: a video opened once, decoded once, cut into views; cached, with a time limit.

`ClipDataset` opens the video; `readers/pyav.py` decodes it.
"""

import faulthandler
import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from vidcsl.data.lists import Video, VideoList
from vidcsl.data.readers import PixelShape, Reader, Source, open_reader
from vidcsl.data.sampling import ViewSampler
from vidcsl.errors import UserError, VideoError
from vidcsl.seeding import numpy_generator, sample_seed, seed_of

ClipSampler = Callable[[int, float, np.random.Generator], NDArray[np.int64]]
"""(frames in the video, frames per second, generator) -> indices [V, T], all inside the video."""

OnDamage = Literal["replace", "leave_out", "error"]

MAX_ATTEMPTS = 10


class Cropper(Protocol):
    """Random crops that the decoder makes, as `TrainAugmentation` describes them."""

    @property
    def size(self) -> int:
        """Side of the square crops, pixels."""

    def boxes(self, sizes: Tensor, seeds: Tensor, views: int) -> Tensor:
        """Sizes (H, W) [N, 2], seeds [N] and the number of views V to boxes [N, V, 4]."""


@dataclass(frozen=True)
class Sample:
    """The views of one video.

    Attributes:
        frames: uint8 [V, 3, T, H, W], contiguous.
        size: (H, W).
        label, group, index: of the video that was read; -1 is an unknown label or group.
        frame_indices: int64 [V, T], which frames of the video these are; views may share some.
        epoch: the one that asked for it.
        damaged: the videos that could not be read and that this one replaces.
        reader: the name of the reader that decoded it.
        notes: see `Reader.notes`.
        window: with `ClipDataset.windows`, uint8 `[3, L, H, W]`: all frames from the first to the
            last that the views hold.
        rate: frames per second of the video; 0: unknown.
    """

    frames: Tensor
    size: tuple[int, int]
    label: int
    group: int
    index: int
    frame_indices: Tensor
    epoch: int
    damaged: tuple[str, ...] = ()
    reader: str = ""
    notes: tuple[str, ...] = ()
    window: Tensor | None = None
    rate: float = 0.0


class ClipDataset(Dataset[Sample]):
    """Reads the views of a video.

    An item's key is `(epoch, index)`: worker processes outlive an epoch, and learn of the next one
    by its keys. The sampler's generator depends on seed, epoch, index and purpose only.

    Args:
        videos: the list.
        sampler: which frames make the views; gets the video's length, rate and a generator.
        reader: a name in `readers.READERS`.
        short_side: of the decoded frames, pixels.
        pixels: what is done with pixels that are not square, see `open_reader`.
        seed: of the run.
        purpose: keeps the random choices of training and evaluation apart.
        on_damage: "replace" reads another video, drawn at random but reproducibly, in place of one
            that cannot be read, and reports it in the sample; "error" raises, and so does
            "leave_out", with which the loader skips the video.
        timeout: seconds after which a video counts as unreadable; 0: never.
        cropper: cuts the views where they are decoded; None: whole frames.
        cache: folder that keeps decoded frames, see `cached_opener`; None: no cache.
        windows: samples also hold the frames between those of their views; not with a cropper.
    """

    def __init__(
        self,
        *,
        videos: VideoList,
        sampler: ClipSampler,
        reader: str = "auto",
        short_side: int,
        pixels: PixelShape = "stored",
        seed: int,
        purpose: str = "train",
        on_damage: OnDamage = "replace",
        timeout: float = 0.0,
        cropper: Cropper | None = None,
        cache: Path | None = None,
        windows: bool = False,
    ) -> None:
        assert not (windows and cropper), "windows are of whole frames"
        self.videos = videos
        self.sampler = sampler
        self.reader = reader
        self.short_side = short_side
        self.pixels = pixels
        self.seed = seed
        self.purpose = purpose
        self.on_damage = on_damage
        self.timeout = timeout
        self.cropper = cropper
        self.cache = cache
        self.windows = windows
        self.in_flight = InFlight(0)  # the loader gives one that its workers share
        self.given_up: dict[int, str] = {}  # videos that killed their worker twice, and how

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        """The sample of `(epoch, index)`.

        Raises:
            VideoError: the video cannot be read, and `on_damage` is not "replace".
            UserError: it and all its replacements cannot be read, or the sampler refuses it.
        """
        epoch, index = key
        if self.on_damage != "replace":
            return self._read(epoch, index, position=index)
        damaged: list[VideoError] = []
        for position in self._candidates(epoch, index):
            try:
                paths = tuple(error.path for error in damaged)
                return self._read(epoch, index, position=position, damaged=paths)
            except VideoError as error:
                damaged.append(error)
        raise UserError(
            f"{len(damaged)} videos in a row of {self.videos.source} could not be read, "
            f"see `vidcsl prepare scan`; the first: {damaged[0]}"
        )

    def _candidates(self, epoch: int, index: int) -> Iterator[int]:
        """The video itself, then those that may replace it."""
        yield index
        rng = numpy_generator(self.seed, epoch, index, "replacement")
        drawn = rng.choice(len(self), size=min(MAX_ATTEMPTS, len(self)), replace=False)
        yield from [other for other in drawn.tolist() if other != index][: MAX_ATTEMPTS - 1]

    def _read(
        self, epoch: int, index: int, *, position: int, damaged: tuple[str, ...] = ()
    ) -> Sample:
        """The sample of `(epoch, index)` from the video at `position` of the list."""
        video = self.videos.videos[position]
        if position in self.given_up:
            raise VideoError(video.path, self.given_up[position])
        options: dict[str, Any] = {
            "backend": self.reader,
            "short_side": self.short_side,
            "pixels": self.pixels,
        }
        # Bytes of a shard are fetched here, outside the time limit: a store that is slow to hand
        # out a video does not damage it.
        open_video: Callable[[], Reader]
        if self.cache is None:
            open_video = partial(open_reader, video.source(), **options)
        else:
            open_video = cached_opener(video, folder=self.cache, **options)
        with (
            self.in_flight.reading(position),
            time_limit(self.timeout, str(video.path)),
            # Opened for this sample alone: a decoder opened in one process hangs in another.
            open_video() as reader,
        ):
            rng = numpy_generator(self.seed, epoch, index, f"{self.purpose}/sampling")
            try:
                timed: dict[str, Any] = {}
                if isinstance(self.sampler, ViewSampler) and self.sampler.fps > 0:
                    timed["times"] = reader.times
                clips = self.sampler(reader.num_frames, reader.fps, rng, **timed)  # [V, T]
            except VideoError:
                raise  # the time limit
            except UserError as error:
                raise UserError(f"{reader.source.name}: {error}") from error
            window = None
            if self.windows:  # decoded once, from the first frame to the last
                first, last = int(clips.min()), int(clips.max())
                between = torch.from_numpy(reader.read(np.arange(first, last + 1)))
                window = between.permute(3, 0, 1, 2).contiguous()
                frames = window[:, torch.from_numpy(clips - first)].transpose(0, 1).contiguous()
            elif self.cropper is None:
                whole = torch.from_numpy(reader.read(clips.reshape(-1)))  # [V * T, H, W, 3]
                frames = whole.unflatten(0, clips.shape).permute(0, 4, 1, 2, 3).contiguous()
            else:
                # Augmentation draws from the same seed, so boxes are those of whole frames.
                seeds = torch.tensor([sample_seed(self.seed, epoch, position)])
                size = torch.tensor([[reader.height, reader.width]])
                boxes = self.cropper.boxes(size, seeds, len(clips))[0].numpy()  # [V, 4]
                crops = reader.read_crops(clips, boxes, size=self.cropper.size)
                frames = torch.from_numpy(crops)
        height, width = frames.shape[-2:]
        return Sample(
            frames=frames,  # [V, 3, T, H, W]
            size=(height, width),
            label=video.label,
            group=video.group,
            index=position,
            frame_indices=torch.from_numpy(clips),
            epoch=epoch,
            damaged=damaged,
            reader=reader.name,
            notes=reader.notes,
            window=window,
            rate=float(reader.fps or 0),
        )


# Decoded frames on disk, for small sets that are trained on for many epochs -----------------------
#
# A frame is stored as it would have been decoded, so whole frames are the same bytes with and
# without the cache. Crops are cut from these frames, where a decoder cuts them from the file's own
# pixels: with crops, a cache changes the training run. It takes `3 * H * W` bytes a frame: 2 GB for
# ten classes of UCF101 at short side 64.


class CachedReader(Reader):
    """Reads frames that `cached_opener` has stored; only those asked for come from the disk."""

    name = "cache"

    def __init__(self, path: Path, stored: Path) -> None:
        super().__init__(Source.of(path))
        self._video = np.load(stored, mmap_mode="r", allow_pickle=False)
        self.num_frames, self.height, self.width, _ = self._video.shape
        facts = json.loads(stored.with_suffix(".json").read_text())
        self.fps, self.notes = facts["fps"], tuple(facts["notes"])
        self._times = None if facts["times"] is None else np.array(facts["times"])

    @property
    def times(self) -> NDArray[np.float64] | None:
        """See `Reader.times`."""
        return self._times

    def _decode(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        frames: NDArray[np.uint8] = self._video[indices]
        return frames


def cached_opener(
    video: Video, *, folder: Path, backend: str, short_side: int, pixels: PixelShape = "stored"
) -> Callable[[], Reader]:
    """A function that opens a video through the cache; its first call decodes and stores it whole.

    The bytes of a packed video are fetched by `cached_opener`, not by the function it returns.

    Args:
        video: from a list.
        folder: of the cache; processes and runs may share it.
        backend, short_side, pixels: as in `open_reader`. Other values, or a changed file, are
            stored again.

    Raises:
        VideoError: there is no such file. The function raises as `open_reader` does, and for any
            frame of the video that cannot be decoded.
    """
    key = seed_of(*video.identity(), backend, short_side, pixels)
    stored = folder / f"{video.path.stem}-{key:016x}.npy"
    if stored.exists():
        return partial(CachedReader, video.path, stored)
    source = video.source()

    def decode_and_open() -> Reader:
        with open_reader(source, backend=backend, short_side=short_side, pixels=pixels) as reader:
            frames, times = reader.read(range(reader.num_frames)), reader.times
            facts = {"fps": reader.fps, "notes": reader.notes}
        facts["times"] = None if times is None else times.tolist()
        stored.parent.mkdir(parents=True, exist_ok=True)
        # Named by process: two workers may store the same video at once, and either copy will do.
        unfinished = stored.with_suffix(f".{os.getpid()}.partial")
        unfinished.write_text(json.dumps(facts))
        unfinished.replace(stored.with_suffix(".json"))
        with unfinished.open("wb") as file:
            np.save(file, frames)
        unfinished.replace(stored)
        return CachedReader(video.path, stored)

    return decode_and_open


# Decoding that hangs or crashes: it ends, and the video that caused it is named ------------------

NOTHING = -1


class InFlight:
    """The video that each worker process is reading; its parent sees it after the worker's death.

    A video is a position in the list; `NOTHING` for a worker that reads none.
    """

    def __init__(self, workers: int) -> None:
        self._videos = multiprocessing.Array("q", [NOTHING] * max(1, workers), lock=False)

    @contextmanager
    def reading(self, video: int) -> Iterator[None]:
        """In a worker: it reads this video within the block."""
        info = get_worker_info()
        worker = info.id if info else 0
        self._videos[worker] = video
        try:
            yield
        finally:  # a process that dies does not get here
            self._videos[worker] = NOTHING

    def video_of(self, worker: int) -> int:
        """The video that a worker was reading."""
        return self._videos[worker]

    def clear(self) -> None:
        """Forget everything."""
        for worker in range(len(self._videos)):
            self._videos[worker] = NOTHING


@contextmanager
def time_limit(seconds: float, path: str) -> Iterator[None]:
    """Raise VideoError in the block after `seconds`; 0: never.

    An alarm is not heard while a library hangs in native code. A worker therefore exits after twice
    the time; the loader then goes on without the video.
    """
    if not seconds or threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(*_: object) -> None:
        raise VideoError(path, f"reading it took more than {seconds:g} s (DATA.TIMEOUT)")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    in_worker = get_worker_info() is not None
    if in_worker:
        # faulthandler's timer is a native thread, which works while Python's lock is held. Its
        # traceback would fill the log.
        if not _DEVNULL:
            _DEVNULL.append(os.open(os.devnull, os.O_WRONLY))
        faulthandler.dump_traceback_later(2 * seconds, exit=True, file=_DEVNULL[0])
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if in_worker:
            faulthandler.cancel_dump_traceback_later()


_DEVNULL: list[int] = []  # opened once for each process
