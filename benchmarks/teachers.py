#!/usr/bin/env python3
"""Time and memory that a teacher of many videos takes before the first training step.

    python benchmarks/teachers.py [--videos 240000] [--dim 64] [--threads 2]

The vectors are random, of 200 classes; decoding and flow, which each video needs once, are not in
these figures. What is timed: principal components of motion descriptors (on a twentieth of the
videos, as time is linear in them), smoothing and thresholds of the rule `auto`.
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from vidcsl.seeding import numpy_generator
from vidcsl.teachers.motion import MOTION_DIM
from vidcsl.teachers.neighbours import Teacher, smoothed, thresholds
from vidcsl.teachers.vectors import half_whitened

CLASSES = 200
BLOCK = 8192


def main() -> None:
    """Print a line for each step."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--videos", type=int, default=240_000)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as name:
        vectors = made(Path(name) / "vectors.npy", count=args.videos, dim=args.dim)
        descriptors = made(Path(name) / "motion.npy", count=args.videos // 20, dim=MOTION_DIM)
        timed("components of a twentieth", lambda: half_whitened(descriptors))
        smooth = timed("smoothing", lambda: smoothed(vectors, Path(name) / "smooth.npy", nearest=5))
        timed("thresholds", lambda: thresholds(Teacher("made", smooth), rule="auto"))


def made(path: Path, *, count: int, dim: int) -> np.ndarray:
    """Memory-mapped unit rows around the centres of classes."""
    generator = numpy_generator("benchmark")
    centres = generator.standard_normal((CLASSES, dim))
    array = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=(count, dim))
    for start in range(0, count, BLOCK):
        rows = np.arange(start, min(start + BLOCK, count))
        block = centres[rows % CLASSES] + generator.standard_normal((len(rows), dim))
        array[rows] = block / np.linalg.norm(block, axis=1, keepdims=True)
    return array


def timed(title, function):
    """What the function returns; prints its processor time and the peak memory up to now."""
    started = time.process_time()
    found = function()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"{title:28} {time.process_time() - started:8.1f} s of one core   peak {peak:.2f} GiB",
        flush=True,
    )
    return found


if __name__ == "__main__":
    main()
