"""Room on the disk and in the memory that processes share."""

import shutil
from collections.abc import Iterator
from pathlib import Path

from vidcsl.doctor.finding import Finding

SHARED_MEMORY = Path("/dev/shm")
LEAST_DISK, LEAST_SHARED = 2**30, 2**30  # bytes


def examine_storage(output: Path, *, batches: int = 0) -> Iterator[Finding]:
    """Room for checkpoints and for batches on their way.

    Args:
        output: where runs are written; it need not exist yet.
        batches: bytes of shared memory that the loaders of this machine hold; 0: unknown.
    """
    there = next(folder for folder in (output, *output.resolve().parents) if folder.exists())
    free = shutil.disk_usage(there).free
    words = f"{_gib(free)} free at {there}"
    yield Finding("storage", "disk", free >= LEAST_DISK, words, broken=free < LEAST_DISK)
    if not SHARED_MEMORY.is_dir():
        return
    free = shutil.disk_usage(SHARED_MEMORY).free
    needed = batches or LEAST_SHARED
    words = f"{_gib(free)} free at {SHARED_MEMORY}"
    if batches:
        words += f", this config's loaders hold up to {_gib(batches)}"
    if free < needed:
        words += ": enlarge it (docker run --shm-size=16g) or lower DATA.WORKERS"
    yield Finding("storage", "shared memory", free >= needed, words, broken=0 < free < batches)


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
