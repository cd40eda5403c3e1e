"""Clips of the videos in a list, the same ones whatever process reads them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from vidcsl.data.cache import cached_opener
from vidcsl.data.lists import Video, VideoList
from vidcsl.data.readers import Reader, open_reader
from vidcsl.data.watch import Desk, time_limit
from vidcsl.errors import UserError, VideoError
from vidcsl.seeding import numpy_generator, sample_seed

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
