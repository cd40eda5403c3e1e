"""See what the model is fed, and corruptions of a video."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from fvcore.common.config import CfgNode
from numpy.typing import NDArray
from torch import Tensor

from vidcsl.config import overridden
from vidcsl.data.lists import VideoList
from vidcsl.data.loader import Batch
from vidcsl.data.readers import open_reader
from vidcsl.data.sampling import fit_length, uniform_clips
from vidcsl.distributed import DistributedContext
from vidcsl.errors import UserError
from vidcsl.io import Bar
from vidcsl.pipelines.data import (
    build_augmentation,
    build_crop,
    build_lists,
    build_test_loader,
    build_train_loader,
    full_names,
)
from vidcsl.report.previews import (
    ShownCorruption,
    ShownVideo,
    ShownView,
    write_contact_sheet,
    write_gallery,
)
from vidcsl.report.summary import SUITE_TITLES
from vidcsl.robustness.corruptions import SEVERITIES, corrupt, find
from vidcsl.robustness.corruptions.draws import to_bytes
from vidcsl.robustness.corruptions.suites import strength
from vidcsl.seeding import sample_seed

# ----------------------------------------------------------------------
# From a config to pictures of what the model is fed.

PARTS = ("train", "test")


def show(
    cfg: CfgNode,
    distributed: DistributedContext,
    *,
    part: str,
    epoch: int,
    samples: int,
    folder: Path,
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
    train, test = build_lists(cfg, distributed)
    videos = train if part == "train" else test
    if videos is None:
        raise UserError("DATA.TEST_LIST is not set: there are no test videos to show")
    batch, fed = _FIRST[part](_small(cfg, min(samples, len(videos))), videos, distributed, epoch)
    shown = [_sample(cfg, videos, batch, row, clips) for row, clips in enumerate(fed[:samples])]
    title = f"{cfg.NAME}, seed {cfg.SEED}: {part} videos" + f", epoch {epoch}" * (part == "train")
    return write_contact_sheet(shown, folder, title=title)


def _small(cfg: CfgNode, samples: int) -> CfgNode:
    """The config with a batch of a few videos; the order of an epoch does not depend on it."""
    return overridden(cfg, {"TRAIN.BATCH": max(2, samples), "DATA.WORKERS": 0})


def _first_of_training(
    cfg: CfgNode, videos: VideoList, distributed: DistributedContext, epoch: int
) -> tuple[Batch, Tensor]:
    batch = next(build_train_loader(cfg, videos, distributed).epoch(epoch))
    seeds = torch.tensor([sample_seed(cfg.SEED, epoch, index) for index in batch.indices.tolist()])
    return batch, build_augmentation(cfg)(batch.frames, batch.sizes, seeds)


def _first_of_test(
    cfg: CfgNode, videos: VideoList, distributed: DistributedContext, _epoch: int
) -> tuple[Batch, Tensor]:
    loader = build_test_loader(
        cfg, videos, distributed, clips=cfg.EVALUATE.TEST_VIEWS, batch=cfg.TRAIN.BATCH
    )
    batch = next(loader.epoch(0))
    return batch, build_crop(cfg)(batch.frames, batch.sizes)


_FIRST = {"train": _first_of_training, "test": _first_of_test}


def _sample(cfg: CfgNode, videos: VideoList, batch: Batch, row: int, fed: Tensor) -> ShownVideo:
    """One video of a batch with its clips, float [V, 3, T, S, S], and its whole frames."""
    video = videos.videos[int(batch.indices[row])]
    numbers = batch.frame_indices[row]  # [V, T]
    options = {"backend": cfg.DATA.READER, "short_side": cfg.DATA.SHORT_SIDE}
    with open_reader(video.source(), **options) as reader:
        decoded = [reader.read(view.tolist()) for view in numbers]
        frames, fps = reader.num_frames, reader.fps
    return ShownVideo(
        video=video.path.name,
        class_name=videos.classes[video.label] if video.label >= 0 else "",
        frames=frames,
        fps=fps,
        views=tuple(
            ShownView(tuple(view.tolist()), np.ascontiguousarray(whole), _pixels(clip))
            for view, whole, clip in zip(numbers, decoded, fed, strict=True)
        ),
    )


def _pixels(clip: Tensor) -> NDArray[np.uint8]:
    """[3, T, S, S] in [0, 1] as uint8 [T, S, S, 3]."""
    pixels: NDArray[np.uint8] = clip.mul(255).round().byte().permute(1, 2, 3, 0).numpy()
    return np.ascontiguousarray(pixels)


# ----------------------------------------------------------------------
# From a video to a page of its corruptions.


def show_corruptions(
    video: Path, *, out: Path, names: Sequence[str], frames: int, stride: int, side: int, seed: int
) -> None:
    """Corrupt the middle of a video in all the ways named, and write the page.

    Args:
        video: a file.
        out: the page.
        names: corruptions, suites (P, C, V) or "all".
        frames, stride, side: of the clip; side is the short one, in pixels.
        seed: of the corruptions.

    Raises:
        UserError: an unknown name, a video that cannot be read, or a size that is no size.
    """
    if min(frames, stride, side) < 1:
        raise UserError("gallery: --frames, --stride and --side must be at least 1")
    chosen = full_names(names)
    clip, pixels = _middle(video, frames=frames, stride=stride, side=side)
    bar = Bar("corruptions", total=len(chosen))
    exhibits: dict[str, list[ShownCorruption]] = {}
    for name in chosen:
        exhibits.setdefault(name.partition("/")[0], []).append(_exhibit(clip, name, seed=seed))
        bar.advance()
    bar.close()
    suites = [(SUITE_TITLES[suite], shown) for suite, shown in exhibits.items()]
    write_gallery(out, suites, title=f"Corruptions of {video.name}", clean=pixels)


def _middle(
    video: Path, *, frames: int, stride: int, side: int
) -> tuple[Tensor, NDArray[np.uint8]]:
    """The middle of a video as a clip `[1, 3, T, H, W]` and as frames `[T, H, W, 3]`."""
    with open_reader(video, short_side=side) as reader:
        length = reader.num_frames
        middle = uniform_clips(length, frames=frames, stride=stride, clips=1)[0]
        pixels = reader.read(fit_length(middle, length, policy="loop"))
    return torch.from_numpy(pixels).permute(3, 0, 1, 2)[None].float() / 255, pixels


def _exhibit(clip: Tensor, name: str, *, seed: int) -> ShownCorruption:
    row = find(name)[1]
    films = []
    for severity in SEVERITIES:
        corrupted = to_bytes(corrupt(clip, name, severity=severity, seeds=[seed]))[0]
        films.append((strength(row, severity), corrupted.permute(1, 2, 3, 0).numpy()))
    return ShownCorruption(name, row.category, row.note, films)
