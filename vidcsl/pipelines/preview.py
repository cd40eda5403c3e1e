"""`vidcsl show` and `vidcsl gallery`: clips as the model gets them, and corruptions of a video."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from fvcore.common.config import CfgNode
from torchvision.transforms.v2.functional import center_crop, resize

from vidcsl.config import overridden
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


def show(
    cfg: CfgNode,
    distributed: DistributedContext,
    *,
    part: str,
    epoch: int,
    samples: int,
    folder: Path,
) -> list[Path]:
    """Write a contact sheet of the first videos of an epoch, as the model gets them.

    Args:
        cfg: as for training.
        distributed: of this process alone.
        part: "train": random views, augmented; "test": evenly spaced views, cropped.
        epoch: of the training run; no effect with "test".
        samples: how many videos; fewer if the list is shorter.
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

    # The order of an epoch does not depend on the size of its batches, so one small batch will do.
    samples = min(samples, len(videos))
    small = overridden(cfg, {"TRAIN.BATCH": max(2, samples), "DATA.WORKERS": 0})
    if part == "train":
        batch = next(build_train_loader(small, videos, distributed).epoch(epoch))
        seeds = [sample_seed(cfg.SEED, epoch, index) for index in batch.indices.tolist()]
        clips = build_augmentation(small)(batch.frames, batch.sizes, torch.tensor(seeds))
        title = f"{cfg.NAME}, seed {cfg.SEED}: train videos, epoch {epoch}"
    else:
        views = cfg.EVALUATE.TEST_VIEWS
        loader = build_test_loader(small, videos, distributed, clips=views, batch=small.TRAIN.BATCH)
        batch = next(loader.epoch(0))
        clips = build_crop(small)(batch.frames, batch.sizes)
        title = f"{cfg.NAME}, seed {cfg.SEED}: test videos"
    pixels = clips.mul(255).round().byte().permute(0, 1, 3, 4, 5, 2)  # [N, V, T, S, S, 3]

    # Whole frames beside the clips: decoded again, because the loader may have cut them.
    shown = []
    for row in range(min(samples, len(batch))):
        video = videos.videos[int(batch.indices[row])]
        options = {
            "backend": cfg.DATA.READER,
            "short_side": cfg.DATA.SHORT_SIDE,
            "pixels": cfg.DATA.PIXELS,
        }
        views = []
        with open_reader(video.source(), **options) as reader:
            for numbers, clip in zip(batch.frame_indices[row].tolist(), pixels[row], strict=True):
                whole = np.ascontiguousarray(reader.read(numbers))
                views.append(ShownView(tuple(numbers), whole, np.ascontiguousarray(clip.numpy())))
            shown.append(
                ShownVideo(
                    video=video.path.name,
                    class_name=videos.classes[video.label] if video.label >= 0 else "",
                    frames=reader.num_frames,
                    fps=reader.fps,
                    views=tuple(views),
                )
            )
    return write_contact_sheet(shown, folder, title=title)


MOST_ASPECT = 4  # of the longer side to the shorter in a gallery


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
        UserError: an unknown name, a video that cannot be read, or a size below 1.
    """
    if min(frames, stride, side) < 1:
        raise UserError("gallery: --frames, --stride and --side must be at least 1")
    chosen = full_names(names)
    with open_reader(video) as reader:
        longest = MOST_ASPECT * min(reader.height, reader.width)
        scaled = None if max(reader.height, reader.width) > longest else side
    with open_reader(video, short_side=scaled) as reader:
        length = reader.num_frames
        middle = uniform_clips(length, frames=frames, stride=stride, clips=1)[0]
        pixels = reader.read(fit_length(middle, length, policy="loop"))  # [T, H, W, 3]
    if scaled is None:  # as a whole it would be huge at this side: its middle
        height, width = (min(each, longest) for each in pixels.shape[1:3])
        planes = center_crop(torch.from_numpy(pixels).permute(0, 3, 1, 2), [height, width])
        pixels = resize(planes, [side], antialias=True).permute(0, 2, 3, 1).contiguous().numpy()
    clip = torch.from_numpy(pixels).permute(3, 0, 1, 2)[None].float() / 255  # [1, 3, T, H, W]
    bar = Bar("corruptions", total=len(chosen))
    suites: dict[str, list[ShownCorruption]] = {}
    for name in chosen:
        row = find(name)[1]
        severities = []
        for severity in SEVERITIES:
            corrupted = to_bytes(corrupt(clip, name, severity=severity, seeds=[seed]))[0]
            severities.append((strength(row, severity), corrupted.permute(1, 2, 3, 0).numpy()))
        shown = ShownCorruption(name, row.category, row.note, severities)
        suites.setdefault(name.partition("/")[0], []).append(shown)
        bar.advance()
    bar.close()
    headed = [(SUITE_TITLES[suite], shown) for suite, shown in suites.items()]
    write_gallery(out, headed, title=f"Corruptions of {video.name}", clean=pixels)
