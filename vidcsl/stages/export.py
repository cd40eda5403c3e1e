"""The corrupted test set as video files and lists, for other tools."""

from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from fvcore.common.config import CfgNode
from torch import Tensor

from vidcsl import builders
from vidcsl.data.lists import Row, Video, VideoList, replacing, write_list
from vidcsl.data.readers import open_reader
from vidcsl.engine.distributed import World
from vidcsl.engine.progress import Bar
from vidcsl.errors import UserError
from vidcsl.robustness.corruptions import SEVERITIES, corrupt
from vidcsl.robustness.corruptions.layout import to_bytes
from vidcsl.seeding import seed_of
from vidcsl.stages.job import subset

# Visually lossless, and every player and reader opens it. The clean videos go through it too.
QUALITY = {"crf": "10", "preset": "medium"}
_FALLBACK_RATE = Fraction(25)


def export_corrupted(cfg: CfgNode, world: World, *, folder: Path) -> list[Path]:
    """Write every test video, whole, clean and under every corruption and severity.

    `FOLDER/P/jpeg/3/CLASS/VIDEO.mp4`, and beside it the list `FOLDER/P/jpeg/3.csv`, whose paths
    are relative to `FOLDER/P/jpeg/3`; the clean ones are in `FOLDER/clean`. Frames have the short
    side DATA.SHORT_SIDE and are not cropped. A file that is there already stays, so that an
    export which was stopped goes on. Ranks share the videos.

    Returns:
        The lists.

    Raises:
        UserError: there is no test list or no corruption, two videos would have one name, or one
            cannot be read.
    """
    names = builders.build_corruptions(cfg)
    _, test = builders.build_lists(cfg, world)
    if test is None or not names:
        raise UserError("an export needs DATA.TEST_LIST and CORRUPT.NAMES")
    chosen = subset(test, cfg.CORRUPT.MAX_CLIPS)
    taken = Counter(_relative(cfg, test.videos[index]) for index in chosen)
    if twice := [str(path) for path, count in taken.items() if count > 1]:
        raise UserError(f"two videos of {test.source} would be exported to one file: {twice[0]}")
    targets = {_place(folder, name, s): (name, s) for name in names for s in SEVERITIES}
    targets = {folder / "clean": ("", 0), **targets}
    bar = Bar("export", total=-(-len(chosen) // world.size), shown=world.is_main)
    for index in chosen[world.rank :: world.size]:
        _export_video(cfg, test.videos[index], seed=seed_of(cfg.SEED, index), targets=targets)
        bar.advance()
    bar.close()
    world.barrier()
    lists = [path.with_name(path.name + ".csv") for path in targets]
    if world.is_main:
        rows = list(_rows(cfg, test, chosen))
        for path in lists:
            write_list(path, rows)
    return lists


def _place(folder: Path, name: str, severity: int) -> Path:
    return folder / name / str(severity)


def _export_video(
    cfg: CfgNode, video: Video, *, seed: int, targets: dict[Path, tuple[str, int]]
) -> None:
    """Decode once, corrupt as often as files are missing."""
    relative = _relative(cfg, video)
    missing = {
        path / relative: how for path, how in targets.items() if not (path / relative).exists()
    }
    if not missing:
        return
    with open_reader(
        video.source(), backend=cfg.DATA.READER, short_side=cfg.DATA.SHORT_SIDE
    ) as reader:
        frames = reader.read(np.arange(reader.num_frames))
        rate = Fraction(reader.fps).limit_denominator(1001) if reader.fps else _FALLBACK_RATE
    clip = torch.from_numpy(frames).permute(3, 0, 1, 2)[None].float().div_(255)  # [1, 3, T, H, W]
    for path, (name, severity) in missing.items():
        corrupted = corrupt(clip, name, severity=severity, seeds=[seed]) if severity else clip
        write_video(path, corrupted[0], rate=rate)


def write_video(path: Path, clip: Tensor, *, rate: Fraction) -> None:
    """A clip `[3, T, H, W]` in [0, 1] as H.264 in MP4, whole or not at all; odd sides padded."""
    frames = to_bytes(clip).permute(1, 2, 3, 0).cpu().numpy()
    frames = np.pad(
        frames, [(0, 0), *((0, side % 2) for side in frames.shape[1:3]), (0, 0)], "edge"
    )
    with replacing(path) as partial, av.open(str(partial), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=rate, options=QUALITY)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))


def _rows(cfg: CfgNode, test: VideoList, chosen: list[int]) -> Iterator[Row]:
    for index in chosen:
        video = test.videos[index]
        label = test.classes[video.label] if video.label >= 0 else ""
        group = str(video.group) if video.group >= 0 else ""
        yield Row(str(_relative(cfg, video)), label, group)


def _relative(cfg: CfgNode, video: Video) -> Path:
    return video.path.relative_to(cfg.DATA.ROOT).with_suffix(".mp4")
