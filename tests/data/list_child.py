"""What a worker does with a list; a small module, as processes that are spawned import it first."""

import re
from pathlib import Path

import vidcsl.data.lists  # noqa: F401  (its memory is not the list's)


def private_bytes() -> int:
    """Memory of this process that it shares with no other."""
    rollup = Path("/proc/self/smaps_rollup").read_text()
    return 1024 * sum(int(kib) for kib in re.findall(r"^Private_\w+: +(\d+) kB", rollup, re.M))


IMPORTED = private_bytes()


def touch(videos, results, start):
    """Put into the queue what this process has of its own after it has looked at each video."""
    before = 0 if start == "fork" else IMPORTED
    length = sum(len(str(video.path)) + video.label for video in videos.videos)
    results.put((length, private_bytes() - before))
