"""Make videos small and quick to read: short side, short groups of pictures, H.264 in MP4.

Every decoded frame is kept and none is added: frame k of a copy is frame k of its original,
whatever the time stamps said. A copy's frames are evenly spaced at the original's average rate.
Sound is dropped. Without B-frames and with a keyframe every few frames, a clip costs its own frames
and little more, wherever it starts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path, PurePosixPath
from typing import Any

import av
from av.video.reformatter import VideoReformatter

from vidcsl.data.lists import Row, shorten
from vidcsl.data.prepare import jobs
from vidcsl.data.prepare import lists as common
from vidcsl.data.prepare import lists as relist
from vidcsl.data.prepare.scan import Decoding, decoding
from vidcsl.errors import UserError, VideoError
from vidcsl.io import replacing

PLAIN_RATE = Fraction(25)  # of a file that does not say
PRESETS = ("ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower")


@dataclass(frozen=True)
class Settings:
    """How copies are encoded.

    Attributes:
        short_side: of the pictures, pixels, even. Smaller pictures keep their size.
        gop: frames from one keyframe to the next, at most.
        crf: x264's quality, 0 (lossless) to 51; 18 is hard to tell from the original.
        preset: x264's effort, one of `PRESETS`; it changes size and encoding time.
    """

    short_side: int = 128
    gop: int = 12
    crf: int = 18
    preset: str = "medium"

    def __post_init__(self) -> None:
        if self.short_side < 16 or self.short_side % 2:
            raise UserError(f"the short side must be even and at least 16, not {self.short_side}")
        if self.gop < 1:
            raise UserError(f"a group of pictures has at least 1 frame, not {self.gop}")
        if not 0 <= self.crf <= 51:
            raise UserError(f"the quality (CRF) must be from 0 to 51, not {self.crf}")
        if self.preset not in PRESETS:
            raise UserError(f"unknown preset {self.preset!r}, not one of {', '.join(PRESETS)}")


@dataclass(frozen=True)
class TranscodeReport:
    """What was made.

    Attributes:
        copies: {"frames", "bytes", "sha256"} of each copy, by its path under the new root.
        failures: the reason, by video, for those that could not be copied.
        lists: that were written, and their lengths.
        resumed: copies that an earlier call had made.
    """

    copies: Mapping[str, Mapping[str, Any]]
    failures: Mapping[str, str]
    lists: Mapping[Path, int]
    resumed: int

    def __str__(self) -> str:
        frames, size = (
            sum(copy[key] for copy in self.copies.values()) for key in ("frames", "bytes")
        )
        counts = f"{len(self.copies)} videos, {frames} frames, {size / 2**20:.1f} MiB"
        lines = [
            f"transcode: {counts} ({self.resumed} known from before)",
            *([f"left out: {_describe(self.failures)}"] if self.failures else []),
            *(f"{path}: {number} videos" for path, number in self.lists.items()),
        ]
        return "\n  ".join(lines)


def transcode(
    *,
    root: Path,
    lists: Sequence[Path],
    out_root: Path,
    out: Path,
    settings: Settings = Settings(),
    allow_damaged: bool = False,
    workers: int,
    timeout: float | None = None,
) -> TranscodeReport:
    """Write an H.264 copy of every video of some lists, and the lists of the copies.

    In `out_root`: the copies, `SHA256SUMS`, and the record `transcode.jsonl`, with which a second
    call goes on. A copy appears when it is complete and its frames have been counted again.

    Args:
        root: the folder that the lists' paths are relative to.
        lists: CSV, or UCF101's `.txt`.
        out_root: the folder of the copies.
        out: where the lists of the copies go, each under its name.
        settings: how to encode.
        allow_damaged: leave out the videos that cannot be decoded whole; otherwise they are an
            error, after all the others are done.
        workers: processes.
        timeout: seconds for one video.

    Raises:
        UserError: a list cannot be read or would be overwritten, two copies would have one name, or
            videos cannot be decoded and that is not allowed.
    """
    common.refuse_overwriting(lists, out=out)
    if out_root.resolve() == root.resolve():
        raise UserError(f"the copies need a folder of their own, not {root}")
    rows = relist.read_lists(lists)
    copy_of = _name_copies(relist.videos_of(rows))
    record = out_root / "transcode.jsonl"
    shared = {"out_root": out_root, "scratch": jobs.scratch_of(record), "settings": settings}
    outcomes = jobs.run(
        encode,
        [_task(root / video, video, copy, shared) for video, copy in copy_of.items()],
        record=record,
        title="transcoding",
        workers=workers,
        timeout=timeout,
        intact=lambda result: relist.has_size(out_root / result["copy"], result["bytes"]),
    )
    copies = {result["copy"]: result for result in outcomes.results.values()}
    _write_sums(copies, out_root / "SHA256SUMS")
    if outcomes.failures and not allow_damaged:
        raise UserError(
            f"{_describe(outcomes.failures)}; the other {len(copies)} are done: mend these and "
            "call again, or pass --allow-damaged to leave them out of the lists"
        )
    made = {video: copy for video, copy in copy_of.items() if video in outcomes.results}
    written = relist.write_lists(_renamed(rows, made), out)
    return TranscodeReport(copies, outcomes.failures, written, outcomes.resumed)


def _task(path: Path, video: str, copy: str, shared: Mapping[str, Any]) -> jobs.Task:
    # A copy is called otherwise where another's would have its name, so that counts too.
    state = f"{relist.state_of(path)} {shared['settings']} {copy}"
    return jobs.Task(name=video, state=state, arguments={"path": path, "copy": copy, **shared})


def _write_sums(copies: Mapping[str, jobs.Result], path: Path) -> None:
    with replacing(path) as partial:
        partial.write_text("".join(f"{made['sha256']}  {copy}\n" for copy, made in copies.items()))


def _renamed(rows: Mapping[str, Sequence[Row]], copy_of: Mapping[str, str]) -> dict[str, list[Row]]:
    return {
        name: [row._replace(video=copy_of[row.video]) for row in part if row.video in copy_of]
        for name, part in rows.items()
    }


def encode(
    path: Path, copy: str, *, out_root: Path, scratch: Path, settings: Settings
) -> jobs.Result:
    """Write the copy of one video. Raises VideoError where it cannot be decoded whole."""
    with jobs.replacing(out_root / copy, scratch=scratch) as partial:
        with (
            decoding(path) as source,
            av.open(str(partial), "w", format="mp4", options={"movflags": "+faststart"}) as target,
        ):
            frames = _encode_frames(source, target, settings=settings)
        with decoding(partial) as made:
            kept = sum(1 for _ in made.frames)
        if kept != frames:
            raise VideoError(path, f"its copy has {kept} frames instead of {frames}")
        digest, size = relist.sha256_of(partial), partial.stat().st_size
    return {"copy": copy, "frames": frames, "bytes": size, "sha256": digest}


def _encode_frames(source: Decoding, target: Any, *, settings: Settings) -> int:
    """Decode, scale and encode; how many frames there were."""
    rate = Fraction(source.rate or PLAIN_RATE).limit_denominator(1001)
    stream, scaler, count = None, VideoReformatter(), 0
    for count, frame in enumerate(source.frames, start=1):
        if stream is None:
            stream = _add_stream(target, frame, rate=rate, settings=settings)
        colours = _colours(frame)
        scaled = scaler.reformat(
            frame,
            width=stream.width,
            height=stream.height,
            format="yuv420p",
            interpolation="AREA",
            **{f"{end}_{key}": value for key, value in colours.items() for end in ("src", "dst")},
        )
        scaled.pts, scaled.time_base = count - 1, 1 / rate
        scaled.pict_type = 0  # the encoder's choice, not the original's
        target.mux(stream.encode(scaled))
    assert stream is not None  # a video without frames is an error
    target.mux(stream.encode())
    return count


def _add_stream(target: Any, first: Any, *, rate: Fraction, settings: Settings) -> Any:
    options = {
        "preset": settings.preset,
        "crf": str(settings.crf),
        "g": str(settings.gop),
        "bf": "0",
        "tune": "fastdecode",  # 3 % more bytes, half the time to decode
    }
    stream = target.add_stream("libx264", rate=rate, options=options)
    stream.width, stream.height = _size(first.width, first.height, short_side=settings.short_side)
    stream.pix_fmt = "yuv420p"
    stream.thread_count = 1  # the processes share the cores
    for key, value in _colours(first).items():
        setattr(stream.codec_context, key, value)
    if first.rotation:
        stream.set_display_rotation(first.rotation)
    return stream


def _colours(frame: Any) -> dict[str, int]:
    """How a frame's numbers stand for colours; its copy's do the same. Empty for RGB."""
    if frame.format.is_rgb:
        return {}
    return {"colorspace": frame.colorspace, "color_range": frame.color_range}


def _size(width: int, height: int, *, short_side: int) -> tuple[int, int]:
    """Both sides even, as H.264 wants them, the aspect kept as nearly as that allows."""
    scale = min(1.0, short_side / min(width, height))
    return max(2, 2 * round(width * scale / 2)), max(2, 2 * round(height * scale / 2))


def _name_copies(videos: Sequence[str]) -> dict[str, str]:
    """The copy's path of each video: its own with the suffix `.mp4`, added where that is taken."""
    copies: dict[str, str] = {}
    taken: set[str] = set()
    for video in videos:
        path = PurePosixPath(video)
        if path.is_absolute() or ".." in path.parts:
            raise UserError(f"{video} is not under the root: its copy would be elsewhere, too")
        names = (str(path.with_suffix(".mp4")), f"{path}.mp4")
        free = [name for name in names if name.casefold() not in taken]
        if not free:
            raise UserError(f"{video}: there are already copies called {' and '.join(names)}")
        copies[video] = free[0]
        taken.add(free[0].casefold())
    return copies


def _describe(failures: Mapping[str, str]) -> str:
    named = [f"{video} ({reason})" for video, reason in failures.items()]
    return f"{len(failures)} videos cannot be decoded whole: {shorten(named, most=2)}"
