"""Teachers from a config: who says, before the training, which of its videos are alike."""

import re
from pathlib import Path
from typing import Any

import numpy as np
from fvcore.common.config import CfgNode
from numpy.typing import NDArray
from torch import Tensor

from vidcsl.config import differing_keys, load_config, overridden, parse_config, value_of
from vidcsl.data.lists import VideoList
from vidcsl.distributed import DistributedContext
from vidcsl.errors import UserError
from vidcsl.io import log_message
from vidcsl.methods import Method
from vidcsl.models.pretrained import parse_weights
from vidcsl.pipelines.context import evaluation_context
from vidcsl.pipelines.model import build_encoder, load_weights_of
from vidcsl.run_folder import RunFolder
from vidcsl.teachers.neighbours import Teacher, smoothed
from vidcsl.teachers.vectors import (
    half_whitened,
    is_features,
    join,
    motion_vectors,
    read_features,
)
from vidcsl.training.checkpoint import SUFFIXES, load_checkpoint

# What an encoder with a config of its own takes from the run that it teaches.
_OF_THE_RUN = [
    "DEVICE",
    *(f"DATA.{key}" for key in ("ROOT", "TRAIN_LIST", "TEST_LIST", "READER", "WORKERS", "TIMEOUT")),
]


def build_teacher(
    cfg: CfgNode, videos: VideoList, distributed: DistributedContext, folder: RunFolder
) -> Teacher:
    """The teacher that FALSE_NEGATIVES.TEACHER names, its array in `teacher.npy` of the folder.

    Motion descriptors are kept in DATA.CACHE where it is set, and shared by all runs with it.

    Raises:
        UserError: a teacher is unknown, cannot be read, or is of other videos.
    """
    weights = teacher_weights(cfg)
    names = list(weights)
    path = folder.path / "teacher.npy"
    # Encoders take all processes; what is read or decoded is the main one's work.
    arrays = {
        name: _of_encoder(cfg, name, videos, distributed, folder) if _is_encoder(name) else None
        for name in names
    }
    if distributed.is_main:
        folder.path.mkdir(parents=True, exist_ok=True)
        given = {
            name: _array(cfg, name, videos, folder) if array is None else array
            for name, array in arrays.items()
        }
        joined = path.with_name("teacher.joined.npy")
        smoothed(join(given, joined, weights=weights), path, nearest=cfg.FALSE_NEGATIVES.SMOOTHING)
        joined.unlink()
    distributed.barrier()
    name = " + ".join(
        name if weight == 1 else f"{weight:g}*{name}" for name, weight in weights.items()
    )
    teacher = Teacher(name, np.load(path, mmap_mode="r"), path)
    silent = teacher.silent()
    if silent == len(videos):
        raise UserError(f"FALSE_NEGATIVES.TEACHER {teacher.name} gives all videos the same vector")
    if silent and distributed.is_main:
        log_message(f"the teacher {teacher.name} has no vector of {silent} of {len(videos)} videos")
    return teacher


def teacher_weights(cfg: CfgNode) -> dict[str, float]:
    """The teachers that are joined, and by which weight each.

    Raises:
        UserError: none is named, one twice, or one is of no known kind or missing.
    """
    weights: dict[str, float] = {}
    for part in cfg.FALSE_NEGATIVES.TEACHER.split("+"):
        match = re.fullmatch(r"(?:(\d+(?:\.\d+)?)\s*\*)?\s*(.*)", part.strip())
        assert match is not None  # the second group takes anything
        name = match[2]
        if name in weights:
            raise UserError(f"FALSE_NEGATIVES.TEACHER names {name} twice")
        weights[name] = float(match[1] or 1)
        if not weights[name]:
            raise UserError(f"FALSE_NEGATIVES.TEACHER: the weight of {name} is zero")
        if name != "motion" and not _is_file(name) and not _is_encoder(name):
            raise UserError(
                f"FALSE_NEGATIVES.TEACHER: {name!r} is neither motion, a file of features (.npz, "
                ".npy, .safetensors), a checkpoint (.pt), FORMAT:PATH of an encoder, nor a config "
                "(.yaml) with MODEL.WEIGHTS"
            )
        if _is_file(name) and not Path(name).exists():
            raise UserError(f"FALSE_NEGATIVES.TEACHER: there is no {name}")
    return weights


def load_memory_bank(
    cfg: CfgNode, path: Path, videos: VideoList, *, key: str
) -> tuple[Tensor, Tensor]:
    """The memory bank of another run on the same videos.

    Args:
        cfg: of this run.
        path: the other run's checkpoint.
        videos: the training list of this run.
        key: the option that names it.

    Returns:
        Mean embeddings `[N, P]`, and how often each video was seen, `[N]`.

    Raises:
        UserError: the run has no memory bank, or was trained on other videos.
    """
    document = load_checkpoint(path)
    before = parse_config(document["config"], where=f"the config in {path}")
    if "train_list" in document:
        differs = document["train_list"] != videos.digest
    else:  # of an earlier version: by the list's name alone, as folders may have moved
        differs = Path(before.DATA.TRAIN_LIST).name != Path(cfg.DATA.TRAIN_LIST).name
    if differs or differing_keys(cfg, before, sections=("SYNTHETIC",)):
        raise UserError(f"{key} {path} was trained on another list of videos")
    weights = document["method"]
    if "detector.memory" not in weights:
        raise UserError(
            f"{key} {path} has no memory bank: train it with FALSE_NEGATIVES.DETECTOR memory"
        )
    return weights["detector.memory"], weights["detector.visits"]


def _array(cfg: CfgNode, name: str, videos: VideoList, folder: RunFolder) -> NDArray[Any]:
    if is_features(name):
        return read_features(Path(name), videos)
    if name == "motion":
        kept = Path(cfg.DATA.CACHE) if cfg.DATA.CACHE else folder.path
        found, failures = motion_vectors(
            videos,
            kept / "teacher",
            workers=cfg.DATA.WORKERS,
            backend=cfg.DATA.READER,
            timeout=cfg.DATA.TIMEOUT or None,
        )
        if failures:
            path, reason = next(iter(failures.items()))
            log_message(f"{len(failures)} videos have no motion descriptor, first {path}: {reason}")
        return half_whitened(found)
    memory, visits = load_memory_bank(cfg, Path(name), videos, key="FALSE_NEGATIVES.TEACHER")
    if len(memory) != len(videos):
        raise UserError(
            f"FALSE_NEGATIVES.TEACHER {name} has vectors of {len(memory)} videos, "
            f"{videos.source} has {len(videos)}"
        )
    # A video that no step has seen says nothing, as in the memory detector itself.
    return (memory * (visits > 0)[:, None]).numpy()


def _of_encoder(
    cfg: CfgNode,
    name: str,
    videos: VideoList,
    distributed: DistributedContext,
    folder: RunFolder,
) -> NDArray[Any]:
    """Mean features of each video's views, taken as those of the evaluation."""
    source = name
    if Path(name).suffix == ".yaml":
        # Its own architecture, clips and views; the videos, and how they are read, are the run's.
        of_teacher = load_config(name)
        source = of_teacher.MODEL.WEIGHTS
        if not source:
            raise UserError(f"FALSE_NEGATIVES.TEACHER {name} has no MODEL.WEIGHTS: FORMAT:PATH")
        shared = {key: value_of(cfg, key) for key in _OF_THE_RUN}
        of_teacher = overridden(of_teacher, shared)
    elif parse_weights(name).ours:
        of_teacher = cfg
    else:
        of_teacher = overridden(cfg, {"MODEL.WEIGHTS": name})
    encoder = build_encoder(of_teacher).to(distributed.device)
    for note in load_weights_of(of_teacher, encoder, source=source):
        log_message(note)
    beside = RunFolder(folder.path / "teacher")
    if distributed.is_main:
        beside.create()
    distributed.barrier()
    context = evaluation_context(of_teacher, Method(encoder), videos, distributed, beside)
    views = of_teacher.EVALUATE
    found = context.features(videos, clips=views.TRAIN_VIEWS, crops=views.CROPS, training=True)
    # Rows of videos that could not be read stay zero: nothing is known of them.
    array = np.zeros((len(videos), found.values.shape[2]), dtype=np.float32)
    array[found.indices.numpy()] = found.values.mean(dim=1).numpy()
    return array


def _is_encoder(name: str) -> bool:
    return (":" in name or Path(name).suffix == ".yaml") and not _is_file(name)


def _is_file(name: str) -> bool:
    return is_features(name) or (Path(name).suffix in SUFFIXES and ":" not in name)
