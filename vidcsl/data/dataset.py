"""One sample: a video opened once, decoded once, cut into views; cached, with a time limit."""

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
from typing import Any, Literal, TextIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from vidcsl.data.lists import Video, VideoList
from vidcsl.data.readers import Reader, Source, open_reader
from vidcsl.errors import UserError, VideoError
from vidcsl.seeding import numpy_generator, sample_seed, seed_of

# ----------------------------------------------------------------------
# Decoding that hangs or crashes: it ends, and the video that did it is named.

NOTHING = -1


class Desk:
    """What each worker process has in hand, for its parent to see after the worker's death."""

    def __init__(self, workers: int) -> None:
        self._held = multiprocessing.Array("q", [NOTHING] * max(1, workers), lock=False)

    @contextmanager
    def holding(self, video: int) -> Iterator[None]:
        """In a worker: it has this video in hand."""
        worker = get_worker_info()
        place = worker.id if worker else 0
        self._held[place] = video
        try:
            yield
        finally:  # not reached by a process that dies
            self._held[place] = NOTHING

    def held_by(self, worker: int) -> int:
        """The video that a worker had in hand; `NOTHING` where it had none."""
        return self._held[worker]

    def clear(self) -> None:
        """Forget everything."""
        for place in range(len(self._held)):
            self._held[place] = NOTHING


@contextmanager
def time_limit(seconds: float, path: str) -> Iterator[None]:
    """Raise VideoError in the block after `seconds`; 0: never.

    Where a library hangs in its own code and the alarm is not heard, a worker is ended after twice
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
        # Counted by a native thread, which needs nothing that the library may hold.
        faulthandler.dump_traceback_later(2 * seconds, exit=True, file=_nowhere())
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if in_worker:
            faulthandler.cancel_dump_traceback_later()


STACKS_SIGNAL = signal.SIGUSR1


def tell_stacks(path: Path) -> None:
    """Have this process append its stacks to `path` whenever it gets `STACKS_SIGNAL`.

    That works while it hangs in a library's code, and while it holds the interpreter's lock.
    """
    _STACKS.append(path.open("a"))
    faulthandler.register(STACKS_SIGNAL, file=_STACKS[-1])


_STACKS: list[TextIO] = []  # open for as long as the process lives


def _nowhere() -> int:
    if not _NOWHERE:
        _NOWHERE.append(os.open(os.devnull, os.O_WRONLY))
    return _NOWHERE[0]


_NOWHERE: list[int] = []


# ----------------------------------------------------------------------
# Decoded frames kept on disk, for small sets that are trained on for many epochs.
#
# A frame is stored as it would have been decoded, so whole frames are the same bytes with and
# without the cache. Crops are cut from these frames, where a decoder cuts them from the file's
# own pixels: there a training with a cache is another one than without. It costs `3 * H * W`
# bytes a frame: for a ten-class cut of UCF101 at short side 64, 2 GB.


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


# ----------------------------------------------------------------------
# Clips of the videos in a list, the same ones whatever process reads them.

ClipSampler = Callable[[int, float, np.random.Generator], NDArray[np.int64]]
"""(frames in the video, frames per second, generator) -> indices [V, T], all inside the video."""

Cropper = Callable[[Tensor, Tensor, int], Tensor]
"""(sizes [N, 2], seeds [N], views V) -> boxes [N, V, 4], see `TrainAugmentation.boxes`."""

OnDamage = Literal["replace", "leave_out", "error"]

MAX_ATTEMPTS = 10


@dataclass(frozen=True)
class Sample:
    """The views of one video.

    Attributes:
        frames: uint8 [V, 3, T, H, W], contiguous.
        size: (H, W).
        label, group, index: of the video that was read; -1 is an unknown label or group.
        frame_indices: int64 [V, T], which frames of the video these are; views may share some.
        epoch: the one it was asked for in.
        damaged: the videos that could not be read and that this one stands in for.
        reader: the name of the reader that decoded it.
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


class ClipDataset(Dataset[Sample]):
    """Reads the views of a video.

    An item's key is `(epoch, index)`, so that worker processes need not be told of a new epoch. The
    sampler's generator depends on the seed, epoch, index and purpose only.

    Args:
        videos: the list.
        sampler: which frames make the views; gets the video's length, rate and a generator.
        reader: "auto" or a name in `readers.READERS`.
        short_side: of the decoded frames, pixels.
        seed: of the run.
        purpose: keeps the random choices of training and evaluation apart.
        on_damage: "replace" reads another video, drawn at random but reproducibly, in place of one
            that cannot be read, and reports it in the sample; "error" raises, and so does
            "leave_out", by which the loader goes on without the video.
        timeout: seconds after which reading a video is given up; 0: never.
        crops: boxes that are cut out of the views where they are decoded; None: whole frames.
        crop_size: side of what is cut out, pixels.
        cache: folder in which decoded frames are kept, see `vidcsl.data.cache`; None: nowhere.
    """

    def __init__(
        self,
        *,
        videos: VideoList,
        sampler: ClipSampler,
        reader: str = "auto",
        short_side: int,
        seed: int,
        purpose: str = "train",
        on_damage: OnDamage = "replace",
        timeout: float = 0.0,
        crops: Cropper | None = None,
        crop_size: int = 0,
        cache: Path | None = None,
    ) -> None:
        self.videos = videos
        self.sampler = sampler
        self.reader = reader
        self.short_side = short_side
        self.seed = seed
        self.purpose = purpose
        self.on_damage = on_damage
        self.timeout = timeout
        self.desk = Desk(0)  # the loader gives one that its workers share
        self.given_up: dict[int, str] = {}  # videos that cost a worker's life, and how
        self.crops, self.crop_size = crops, crop_size
        self.cache = cache

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
        for position in self._positions(epoch, index):
            try:
                paths = tuple(error.path for error in damaged)
                return self._read(epoch, index, position=position, damaged=paths)
            except VideoError as error:
                damaged.append(error)
        raise UserError(
            f"{len(damaged)} videos in a row of {self.videos.source} could not be read, "
            f"the first: {damaged[0]}"
        )

    def _positions(self, epoch: int, index: int) -> Iterator[int]:
        """The video itself, then others to take its place."""
        yield index
        rng = numpy_generator(self.seed, epoch, index, "replacement")
        drawn = rng.choice(len(self), size=min(MAX_ATTEMPTS, len(self)), replace=False)
        yield from [other for other in drawn.tolist() if other != index][: MAX_ATTEMPTS - 1]

    def _read(
        self, epoch: int, index: int, *, position: int, damaged: tuple[str, ...] = ()
    ) -> Sample:
        video = self.videos.videos[position]
        if position in self.given_up:
            raise VideoError(video.path, self.given_up[position])
        rng = numpy_generator(self.seed, epoch, index, f"{self.purpose}/sampling")
        # Before the time runs: a store that is slow to hand out a video does not damage it.
        open_video = self._opener(video)
        with (
            self.desk.holding(position),
            time_limit(self.timeout, str(video.path)),
            # Opened here and not kept: a decoder opened in one process hangs in another.
            open_video() as reader,
        ):
            clips = self._sampled(reader, rng)  # [V, T]
            frames = self._views(reader, clips, sample_seed(self.seed, epoch, position))
        height, width = frames.shape[-2:]
        return Sample(
            frames=frames,
            size=(height, width),
            label=video.label,
            group=video.group,
            index=position,
            frame_indices=torch.from_numpy(clips),
            epoch=epoch,
            damaged=damaged,
            reader=reader.name,
        )

    def _views(self, reader: Reader, clips: NDArray[np.int64], seed: int) -> Tensor:
        """uint8 [V, 3, T, H, W]."""
        if self.crops is None:
            frames = torch.from_numpy(reader.read(clips.reshape(-1)))  # [V * T, H, W, 3]
            return frames.unflatten(0, clips.shape).permute(0, 4, 1, 2, 3).contiguous()
        size = torch.tensor([[reader.height, reader.width]])
        boxes = self.crops(size, torch.tensor([seed]), len(clips))[0].numpy()  # [V, 4]
        return torch.from_numpy(reader.read_crops(clips, boxes, size=self.crop_size))

    def _opener(self, video: Video) -> Callable[[], Reader]:
        options: dict[str, Any] = {"backend": self.reader, "short_side": self.short_side}
        if self.cache is None:
            return partial(open_reader, video.source(), **options)
        return cached_opener(video, folder=self.cache, **options)

    def _sampled(self, reader: Reader, rng: np.random.Generator) -> NDArray[np.int64]:
        try:
            return self.sampler(reader.num_frames, reader.fps, rng)
        except VideoError:
            raise  # the time is over
        except UserError as error:
            raise UserError(f"{reader.source.name}: {error}") from error
