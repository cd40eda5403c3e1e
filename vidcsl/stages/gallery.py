"""From a video to a page of its corruptions."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vidcsl.builders.corruptions import full_names
from vidcsl.data.readers import open_reader
from vidcsl.data.sampling import fit_length, uniform_clips
from vidcsl.engine.progress import Bar
from vidcsl.errors import UserError
from vidcsl.report.gallery import Exhibit, write_gallery
from vidcsl.report.summary import SUITE_TITLES
from vidcsl.robustness.corruptions import SEVERITIES, corrupt, find
from vidcsl.robustness.corruptions.layout import to_bytes
from vidcsl.robustness.corruptions.suites import strength


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
    exhibits: dict[str, list[Exhibit]] = {}
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
        middle = uniform_clips(length, clip_frames=frames, stride=stride, clips=1)[0]
        pixels = reader.read(fit_length(middle, length, policy="loop"))
    return torch.from_numpy(pixels).permute(3, 0, 1, 2)[None].float() / 255, pixels


def _exhibit(clip: Tensor, name: str, *, seed: int) -> Exhibit:
    row = find(name)[1]
    films = []
    for severity in SEVERITIES:
        corrupted = to_bytes(corrupt(clip, name, severity=severity, seeds=[seed]))[0]
        films.append((strength(row, severity), corrupted.permute(1, 2, 3, 0).numpy()))
    return Exhibit(name, row.category, row.note, films)
