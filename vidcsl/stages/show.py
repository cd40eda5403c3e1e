"""From a config to pictures of what the model is fed."""

from pathlib import Path

import numpy as np
import torch
from fvcore.common.config import CfgNode
from numpy.typing import NDArray
from torch import Tensor

from vidcsl import builders
from vidcsl.config import overridden
from vidcsl.data.lists import VideoList
from vidcsl.data.loader import Batch
from vidcsl.data.readers import open_reader
from vidcsl.engine.distributed import World
from vidcsl.errors import UserError
from vidcsl.report.contact_sheet import Sample, View, write_contact_sheet
from vidcsl.seeding import sample_seed

PARTS = ("train", "test")


def show(
    cfg: CfgNode, world: World, *, part: str, epoch: int, samples: int, folder: Path
) -> list[Path]:
    """Write a contact sheet of the first videos of an epoch.

    They are those that training gets first in that epoch, cut and augmented in the same way.

    Args:
        cfg: as for training.
        world: of this process alone.
        part: "train": random views, augmented; "test": evenly spaced views, cropped.
        epoch: which one; it changes nothing for "test".
        samples: how many videos; fewer where the list is shorter.
        folder: where `clips.png` and `clips.html` go.

    Raises:
        UserError: a list, a video or an option is not what it should be.
    """
    if samples < 1:
        raise UserError(f"show: at least one video must be shown, not {samples}")
    train, test = builders.build_lists(cfg, world)
    videos = train if part == "train" else test
    if videos is None:
        raise UserError("DATA.TEST_LIST is not set: there are no test videos to show")
    batch, fed = _FIRST[part](_small(cfg, min(samples, len(videos))), videos, world, epoch)
    shown = [_sample(cfg, videos, batch, row, clips) for row, clips in enumerate(fed[:samples])]
    title = f"{cfg.NAME}, seed {cfg.SEED}: {part} videos" + f", epoch {epoch}" * (part == "train")
    return write_contact_sheet(shown, folder, title=title)


def _small(cfg: CfgNode, samples: int) -> CfgNode:
    """The config with a batch of a few videos; the order of an epoch does not depend on it."""
    return overridden(cfg, {"TRAIN.BATCH": max(2, samples), "DATA.WORKERS": 0})


def _first_of_training(
    cfg: CfgNode, videos: VideoList, world: World, epoch: int
) -> tuple[Batch, Tensor]:
    batch = next(builders.build_train_loader(cfg, videos, world).epoch(epoch))
    seeds = torch.tensor([sample_seed(cfg.SEED, epoch, index) for index in batch.indices.tolist()])
    return batch, builders.build_augmentation(cfg)(batch.frames, batch.sizes, seeds)


def _first_of_test(
    cfg: CfgNode, videos: VideoList, world: World, _epoch: int
) -> tuple[Batch, Tensor]:
    loader = builders.build_test_loader(
        cfg, videos, world, clips=cfg.EVALUATE.TEST_VIEWS, batch=cfg.TRAIN.BATCH
    )
    batch = next(loader.epoch(0))
    return batch, builders.build_crop(cfg)(batch.frames, batch.sizes)


_FIRST = {"train": _first_of_training, "test": _first_of_test}


def _sample(cfg: CfgNode, videos: VideoList, batch: Batch, row: int, fed: Tensor) -> Sample:
    """One video of a batch with its clips, float [V, 3, T, S, S], and its whole frames."""
    video = videos.videos[int(batch.indices[row])]
    numbers = batch.frame_indices[row]  # [V, T]
    options = {"backend": cfg.DATA.READER, "short_side": cfg.DATA.SHORT_SIDE}
    with open_reader(video.source(), **options) as reader:
        decoded = [reader.read(view.tolist()) for view in numbers]
        frames, fps = reader.num_frames, reader.fps
    return Sample(
        video=video.path.name,
        class_name=videos.classes[video.label] if video.label >= 0 else "",
        frames=frames,
        fps=fps,
        views=tuple(
            View(tuple(view.tolist()), np.ascontiguousarray(whole), _pixels(clip))
            for view, whole, clip in zip(numbers, decoded, fed, strict=True)
        ),
    )


def _pixels(clip: Tensor) -> NDArray[np.uint8]:
    """[3, T, S, S] in [0, 1] as uint8 [T, S, S, 3]."""
    pixels: NDArray[np.uint8] = clip.mul(255).round().byte().permute(1, 2, 3, 0).numpy()
    return np.ascontiguousarray(pixels)
