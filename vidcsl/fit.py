"""Sizes that fit a list of videos and this machine: what a config with FIT.MINUTES leaves open.

The choice is an estimate from the list's length, the cores or the GPU, and the minutes alone: from
what a clip of each size took on one machine. Nothing is timed here, so the same list on the same
machine gives the same config, whatever else runs there. `vidcsl doctor` times a step.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any

import torch

MOST_VIDEOS = 48  # in a batch: more would mean fewer steps than a small list needs
ENOUGH_EPOCHS = 60  # a larger encoder is worth it once the smaller one has had so many


@dataclass(frozen=True)
class Machine:
    """What decides how much can be learned; memory in GiB, 0 where there is no GPU."""

    cores: int
    memory_gib: float
    gpu_memory_gib: float

    def __str__(self) -> str:
        gpu = f" and a GPU of {self.gpu_memory_gib:.0f} GiB" if self.gpu_memory_gib else ""
        return f"{self.cores} cores{gpu}"


@dataclass(frozen=True)
class Size:
    """An R(2+1)D and its clips; what a training clip costs: core seconds, and MiB in float32."""

    width: int
    depth: int
    frame_size: int
    frames: int
    short_side: int
    seconds: float
    mib: float


# From small to whole. Seconds are of an AMD EPYC without AVX-512, forward and backward pass.
SIZES = (
    Size(width=12, depth=1, frame_size=32, frames=8, short_side=48, seconds=0.05, mib=4),
    Size(width=16, depth=1, frame_size=48, frames=8, short_side=64, seconds=0.1, mib=12),
    Size(width=32, depth=1, frame_size=64, frames=16, short_side=80, seconds=0.6, mib=75),
    Size(width=64, depth=0, frame_size=112, frames=16, short_side=128, seconds=7.0, mib=600),
)
# What any GPU counts for. Measured is one: an H100 trains the largest size in bfloat16 at 400 clips
# a second (benchmarks/results.md), which is 2,800 of these cores. A sixth of it is assumed, for
# most GPUs are slower, small encoders do not fill them, and a run that ends early harms nobody.
GPU_CORES = 500


def this_machine(device: str) -> Machine:
    """The machine as this process may use it; `device` as the option DEVICE."""
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    except (ValueError, OSError):  # not on Linux
        memory = 8.0
    gpu = 0.0
    if device != "cpu" and torch.cuda.is_available():
        gpu = torch.cuda.get_device_properties(0).total_memory / 2**30
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    return Machine(cores, memory, gpu)


def fitted(*, videos: int, minutes: float, machine: Machine) -> dict[str, Any]:
    """Values by config key, so that pretraining on so many videos takes about so many minutes.

    Args:
        videos: in the training list.
        minutes: of pretraining; the evaluation comes on top.
        machine: that trains.
    """
    power = GPU_CORES if machine.gpu_memory_gib else machine.cores

    def epochs_of(size: Size) -> int:
        return int(minutes * 60 * power / (2 * videos * size.seconds))  # two clips of each video

    enough = [size for size in SIZES if epochs_of(size) >= ENOUGH_EPOCHS]
    size = enough[-1] if enough else SIZES[0]
    epochs = min(max(epochs_of(size), 1), 300)
    # At least two steps an epoch, and as few videos left over as possible.
    batch = max(2, videos // max(2, ceil(videos / MOST_VIDEOS)))
    held = int((machine.gpu_memory_gib or machine.memory_gib) / 2 * 1024 / (2 * size.mib))
    # On a CPU loading beside the training takes its cores away; a GPU waits for it.
    workers = min(machine.cores, 12) if machine.gpu_memory_gib else machine.cores // 4
    return {
        "MODEL.WIDTH": size.width,
        "MODEL.DEPTH": size.depth,
        "MODEL.FRAME_SIZE": size.frame_size,
        "DATA.FRAMES": size.frames,
        "DATA.SHORT_SIDE": size.short_side,
        "DATA.WORKERS": workers,
        "TRAIN.BATCH": batch,
        "TRAIN.CHUNK": 0 if batch <= held else max(1, held),
        "TRAIN.EPOCHS": epochs,
    }


def warmup(epochs: int) -> float:
    """Epochs of warm-up of a run of so many epochs."""
    return min(10.0, round(epochs / 6, 1))


def sentence(values: Mapping[str, Any], *, videos: int, minutes: float, machine: Machine) -> str:
    """What was chosen and for what, in a line."""
    chosen = ", ".join(f"{key} {value}" for key, value in values.items())
    return (
        f"fitted to {videos} videos, {machine} and {minutes:g} minutes of pretraining "
        f"(FIT.MINUTES, an estimate; `vidcsl doctor` times a step): {chosen}; any of them may be "
        "given as KEY VALUE"
    )
