"""Decode every frame of every video of some lists, and set damaged videos aside.

Headers prove nothing: a file may open, give its length and break in the middle. Training replaces
such videos one by one; scanned lists leave them out from the start.
"""

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av

from vidcsl.data.lists import shorten
from vidcsl.data.prepare import jobs
from vidcsl.data.prepare.declared import bytes_missing, declared_frames, falls_short
from vidcsl.data.prepare.lists import (
    read_lists,
    refuse_overwriting,
    state_of,
    videos_of,
    write_lists,
    write_table,
)
from vidcsl.data.readers import Source, open_reader
from vidcsl.data.readers.pyav import frames_of, open_stream
from vidcsl.errors import VideoError

FACTS = ("frames", "fps", "width", "height", "codec", "seconds", "notes", "declared")


@dataclass(frozen=True)
class ScanReport:
    """What was found.

    Attributes:
        videos: how many were decoded.
        quarantine: the reason, by video, for those that were set aside.
        lists: the lists that were written, and their lengths.
        resumed: videos whose result is from an earlier call.
        notes: how many sound videos each note is of, see `Reader.notes`.
    """

    videos: int
    quarantine: Mapping[str, str]
    lists: Mapping[Path, int]
    resumed: int
    notes: Mapping[str, int]

    def __str__(self) -> str:
        kinds = Counter(self.quarantine.values()).most_common()
        reasons = [f"{count} x {reason}" for reason, count in kinds]
        lines = [
            f"scan: {self.videos} videos, {self.videos - len(self.quarantine)} sound, "
            f"{len(self.quarantine)} set aside ({self.resumed} from an earlier call)",
            *([f"set aside: {shorten(reasons)}"] if reasons else []),
            *(f"{count} x {note}" for note, count in self.notes.items()),
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
) -> ScanReport:
    """Decode everything; write the lists without the damaged videos.

    In `out`: each list under its name, `quarantine.csv` (video, reason), `facts.csv` (frames, size,
    codec of the sound ones) and the record `scan.jsonl`, from which a second call resumes.

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
    refuse_overwriting(lists, out=out)
    rows = read_lists(lists)
    videos = videos_of(rows)
    outcomes = jobs.run(
        examine,
        [
            jobs.Task(
                name=video,
                state=f"{state_of(root / video)} {reader} length",  # also checked since: the length
                arguments={"path": root / video, "reader": reader},
            )
            for video in videos
        ],
        record=out / "scan.jsonl",
        title="scanning",
        workers=workers,
        timeout=timeout,
    )
    sound = outcomes.results
    write_table(out / "quarantine.csv", ("video", "reason"), sorted(outcomes.failures.items()))
    write_table(
        out / "facts.csv",
        ("video", *FACTS),
        [(video, *(facts.get(key, "") for key in FACTS)) for video, facts in sound.items()],
    )
    clean = {name: [row for row in part if row.video in sound] for name, part in rows.items()}
    written = write_lists(clean, out)
    notes = Counter(
        note for facts in sound.values() for note in facts.get("notes", "").split("; ") if note
    )
    return ScanReport(len(videos), outcomes.failures, written, outcomes.resumed, dict(notes))


def examine(path: Path, reader: str) -> jobs.Result:
    """Decode a video whole and return its facts. Raises VideoError if it is damaged."""
    started = time.perf_counter()
    times: list[float] = []
    sizes: list[tuple[int, int]] = []
    with decoding(path) as video:
        for frame in video.frames:
            sizes.append((frame.width, frame.height))
            times += [frame.time] if frame.time is not None else []
    # Damage that a decoder does not see: the file is shorter than it says.
    # Frames before the first keyframe of a file that was cut are declared, and nothing is lost.
    shown = times[-1] - min(times[0], video.begins) + 1 / float(video.rate or 25) if times else 0.0
    declared = declared_frames(
        video.container,
        frames=video.declared,
        duration=video.duration,
        shown=shown,
        read=len(sizes),
    )
    if falls_short(len(sizes), declared):
        raise VideoError(path, f"cut off: {len(sizes)} of {declared} declared frames")
    if path.is_file() and bytes_missing(path):
        of = f" of {declared} declared frames" if declared > len(sizes) else " frames"
        raise VideoError(path, f"cut off: {len(sizes)}{of}, and the end of the file is missing")
    # The training reader counts by the index where it can; this is where a wrong index shows.
    with open_reader(path, backend=reader) as opened:
        counted = opened.num_frames
        opened.read([0, counted - 1])
        notes = "; ".join(opened.notes)
    if counted != len(sizes):
        reason = f"the reader {reader} counts {counted} frames, there are {len(sizes)}"
        raise VideoError(path, reason)
    facts = (counted, round(float(video.rate or 0), 3), *sizes[0], video.codec)
    seconds = round(time.perf_counter() - started, 3)
    return dict(zip(FACTS, (*facts, seconds, notes, declared or ""), strict=True))


# Every frame of a video, in the order of decoding -------------------------------------------------


@dataclass(frozen=True)
class Decoding:
    """A video that is being decoded.

    Attributes:
        frames: `av.VideoFrame`s; they raise VideoError at damage.
        codec: its name.
        rate: frames per second on average, None if the file has no rate.
        pixel_aspect: width of a pixel over its height.
        container: FFmpeg's name of the format.
        declared: frames by the header; 0: it does not say.
        duration: seconds by the header, of the video alone; 0: it does not say.
        begins: time of the first packet, seconds.
    """

    frames: Iterator[Any]
    codec: str
    rate: Fraction | None
    pixel_aspect: Fraction = Fraction(1)
    container: str = ""
    declared: int = 0
    duration: float = 0.0
    begins: float = 0.0


@contextmanager
def decoding(path: Path) -> Iterator[Decoding]:
    """Open a file, or a folder of pictures. Raises VideoError if that is impossible."""
    if path.is_dir():
        with open_reader(path, backend="pictures") as reader:
            pictures = (reader.read([number])[0].copy() for number in range(reader.num_frames))
            frames = (av.VideoFrame.from_ndarray(each, format="rgb24") for each in pictures)
            yield Decoding(frames, "pictures", None)
        return
    stream = open_stream(Source.of(path))
    with stream.container:
        rate = stream.average_rate or stream.guessed_rate
        aspect = stream.sample_aspect_ratio or Fraction(1)
        yield Decoding(
            _sound_frames(stream, path),
            stream.codec_context.name,
            rate,
            aspect,
            container=stream.container.format.name,
            declared=stream.frames,
            duration=_duration(stream),
            begins=float((stream.start_time or 0) * stream.time_base),
        )


def _duration(stream: Any) -> float:
    """Seconds that the header gives the video; the sound beside it may be longer."""
    if text := stream.metadata.get("DURATION"):  # Matroska's, "00:00:04.000000000"
        with suppress(ValueError):
            hours, minutes, seconds = text.split(":")
            return 3600 * int(hours) + 60 * int(minutes) + float(seconds)
    if len(stream.container.streams) == 1 and stream.container.duration:
        return float(stream.container.duration / av.time_base)
    return 0.0


def _sound_frames(stream: Any, path: Path) -> Iterator[Any]:
    number = -1
    try:
        for number, frame in enumerate(frames_of(stream)):
            if frame.is_corrupt:
                raise VideoError(path, f"frame {number} is damaged")
            yield frame
    except av.error.FFmpegError as error:
        where = f"after frame {number}" if number >= 0 else "before any frame"
        raise VideoError(path, f"decoding fails {where} ({error.strerror})") from error
    if number < 0:
        raise VideoError(path, "no frame can be decoded")
