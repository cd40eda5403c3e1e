"""Decode every frame of every video of some lists, and set aside what training would stumble on.

Headers prove nothing: a file may open, tell its length and break in the middle. Training replaces
such videos one by one; scanned lists do without them from the start.
"""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vidcsl.data.lists import shorten
from vidcsl.data.prepare import common, jobs, relist
from vidcsl.data.prepare.decoding import decoding
from vidcsl.data.readers import open_reader
from vidcsl.errors import VideoError

FACTS = ("frames", "fps", "width", "height", "codec", "seconds")


@dataclass(frozen=True)
class Report:
    """What was found.

    Attributes:
        videos: that were looked at.
        quarantine: the reason, by video, for those that were set aside.
        lists: that were written, and their lengths.
        resumed: videos whose answer an earlier call had found.
    """

    videos: int
    quarantine: Mapping[str, str]
    lists: Mapping[Path, int]
    resumed: int

    def __str__(self) -> str:
        kinds = Counter(self.quarantine.values()).most_common()
        reasons = [f"{count} x {reason}" for reason, count in kinds]
        lines = [
            f"scan: {self.videos} videos, {self.videos - len(self.quarantine)} sound, "
            f"{len(self.quarantine)} set aside ({self.resumed} known from before)",
            *([f"set aside: {shorten(reasons)}"] if reasons else []),
            *(f"{path}: {number} videos" for path, number in self.lists.items()),
        ]
        return "\n  ".join(lines)


def scan(
    *,
    root: Path,
    lists: Sequence[Path],
    out: Path,
    reader: str = "auto",
    workers: int,
    timeout: float | None = None,
) -> Report:
    """Decode everything; write the lists without the videos that are not sound.

    In `out`: each list under its name, `quarantine.csv` (video, reason), `facts.csv` (frames, size,
    codec of the sound ones) and the record `scan.jsonl`, with which a second call goes on.

    Args:
        root: the folder that the lists' paths are relative to.
        lists: CSV, or UCF101's `.txt`.
        out: where everything is written.
        reader: the reader that training will use; it must count as many frames as there are.
        workers: processes.
        timeout: seconds for one video, after which it is set aside.

    Raises:
        UserError: a list cannot be read, or would be overwritten.
    """
    common.refuse_overwriting(lists, out=out)
    rows = relist.read_lists(lists)
    videos = relist.videos_of(rows)
    tasks = [
        jobs.Task(
            name=video,
            state=f"{relist.state_of(root / video)} {reader}",
            arguments={"path": root / video, "reader": reader},
        )
        for video in videos
    ]
    record = out / "scan.jsonl"
    outcomes = jobs.run(
        examine, tasks, record=record, title="scanning", workers=workers, timeout=timeout
    )
    sound = outcomes.results
    relist.write_table(
        out / "quarantine.csv", ("video", "reason"), sorted(outcomes.failures.items())
    )
    relist.write_table(
        out / "facts.csv",
        ("video", *FACTS),
        [(video, *(facts[key] for key in FACTS)) for video, facts in sound.items()],
    )
    clean = {name: [row for row in part if row.video in sound] for name, part in rows.items()}
    written = relist.write_lists(clean, out)
    return Report(len(videos), outcomes.failures, written, outcomes.resumed)


def examine(path: Path, reader: str) -> jobs.Result:
    """Decode a video whole; its facts. Raises VideoError with what is wrong with it."""
    started = time.perf_counter()
    with decoding(path) as video:
        sizes = [(frame.width, frame.height) for frame in video.frames]
    with open_reader(path, backend=reader) as opened:
        counted = opened.num_frames
        opened.read([0, counted - 1])
    if counted != len(sizes):
        reason = f"the reader {reader} counts {counted} frames, there are {len(sizes)}"
        raise VideoError(path, reason)
    facts = (counted, round(float(video.rate or 0), 3), *sizes[0], video.codec)
    return dict(zip(FACTS, (*facts, round(time.perf_counter() - started, 3)), strict=True))
