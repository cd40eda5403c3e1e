"""Attacked clips on disk, without loss: a folder a set, with a description that any tool can read.

`set.json` describes what was attacked and how, and names the file of each clip: a clip whose pixels
are whole multiples of 1/255 is an FFV1 video in Matroska, any other one float32 in safetensors.
"""

import json
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vidcsl.errors import UserError
from vidcsl.io import replacing

MANIFEST = "set.json"
RATE = Fraction(8)  # for players only: the frames of a clip need not be evenly spaced in time
KEYS = {"attack", "clean", "model", "classes", "look", "clips"}


def write_clip(stem: Path, clip: Tensor) -> Path:
    """Write a clip `[3, T, H, W]` in [0, 1] and return its path; a crash leaves no part of it.

    Args:
        stem: the path without its suffix, which the pixels decide.
        clip: float32.
    """
    levels = (clip * 255).round()
    exact = bool((levels / 255 == clip).all())
    path = stem.with_name(stem.name + (".mkv" if exact else ".safetensors"))
    with replacing(path) as partial:
        if exact:
            frames = levels.byte().permute(1, 2, 3, 0).cpu().numpy()  # [T, H, W, 3]
            with av.open(str(partial), "w", format="matroska") as container:
                stream = container.add_stream("ffv1", rate=RATE)
                # FFV1 is lossless in RGB alone: YUV would round.
                stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "bgr0"
                for pixels in frames:
                    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
                    container.mux(stream.encode(frame.reformat(format="bgr0")))
                container.mux(stream.encode(None))
        else:
            save_file({"clip": clip.detach().cpu().contiguous()}, partial)
    return path


def read_clip(path: Path) -> Tensor:
    """The clip that `write_clip` wrote, the same to the last bit.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)["clip"]
        with av.open(str(path)) as container:
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        return torch.from_numpy(np.stack(frames)).permute(3, 0, 1, 2).float() / 255
    except (OSError, ValueError, KeyError, SafetensorError, av.FFmpegError) as error:
        raise UserError(f"cannot read attacked clip {path}: {error}") from error


def write_set(folder: Path, description: Mapping[str, Any]) -> None:
    """Write the description of a set whose clips are written."""
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / MANIFEST) as partial:
        partial.write_text(json.dumps(description, indent=1) + "\n")


def read_set(folder: Path) -> dict[str, Any]:
    """The description of a set.

    Raises:
        UserError: it is missing or damaged.
    """
    path = folder / MANIFEST
    try:
        description = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    if not isinstance(description, dict) or not set(description) >= KEYS:
        raise UserError(f"{path} does not describe attacked clips")
    if not description["clips"]:
        raise UserError(f"{path} contains no clips")
    return description


def find_sets(paths: Sequence[Path]) -> list[Path]:
    """The folders of all sets at or below some paths, in order.

    Raises:
        UserError: a path has no sets.
    """
    found = []
    for path in paths:
        sets = sorted(manifest.parent for manifest in path.rglob(MANIFEST))
        if not sets:
            raise UserError(
                f"{path} holds no attacked clips ({MANIFEST}); make some: vidcsl attack"
            )
        found += sets
    return list(dict.fromkeys(found))
