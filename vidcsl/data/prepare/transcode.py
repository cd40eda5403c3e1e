"""Make videos small and quick to read: short side, short groups of pictures, H.264 in MP4.

Every decoded frame is kept and none is added: frame k of a copy is frame k of its original,
whatever the time stamps are. A copy's frames are evenly spaced at the original's average rate or,
where that varies, shown at the original's times.
Copies are upright: what the display matrix of an original asks for is done to their pixels.
Sound is dropped. Without B-frames and with a keyframe every few frames, a clip costs little more to
decode than its own frames, wherever it starts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path, PurePosixPath
from typing import Any

import av
from av.video.reformatter import VideoReformatter

from vidcsl.data.lists import shorten
from vidcsl.data.prepare import jobs
from vidcsl.data.prepare.lists import (
    has_size,
    read_lists,
    refuse_overwriting,
    sha256_of,
    state_of,
    videos_of,
    write_lists,
)
from vidcsl.data.prepare.scan import decoding
from vidcsl.data.readers import open_reader
from vidcsl.data.readers.reader import (
    AS_STORED,
    Orientation,
    orientation_of,
    pixels_of,
    settle_colours,
)
from vidcsl.errors import UserError, VideoError
from vidcsl.io import replacing

PLAIN_RATE = Fraction(25)  # of a file without a rate
CLOCK = Fraction(1, 90_000)  # of copies whose rate varies
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
        lists: the lists that were written, and their lengths.
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

    In `out_root`: the copies, `SHA256SUMS`, and the record `transcode.jsonl`, from which a second
    call resumes. A copy appears when it is complete and its frames have been counted again.

    Args:
        root: the folder that the lists' paths are relative to.
        lists: CSV, or UCF101's `.txt`.
        out_root: the folder of the copies.
        out: where the lists of the copies go, each under its name.
        settings: how to encode.
        allow_damaged: leave out the videos that cannot be decoded whole; otherwise they are an
            error, once all the others are done.
        workers: processes.
        timeout: seconds for one video.

    Raises:
        UserError: a list cannot be read or would be overwritten, two copies would have one name, or
            videos cannot be decoded and that is not allowed.
    """
    refuse_overwriting(lists, out=out)
    if out_root.resolve() == root.resolve():
        raise UserError(f"the copies need a folder of their own, not {root}")
    rows = read_lists(lists)
    copy_of = name_copies(videos_of(rows))
    record = out_root / "transcode.jsonl"
    shared = {"out_root": out_root, "scratch": jobs.scratch_of(record), "settings": settings}
    outcomes = jobs.run(
        encode,
        [
            jobs.Task(
                name=video,
                # With the copy's name, which changes when another video takes it.
                state=f"{state_of(root / video)} {settings} {copy}",
                arguments={"path": root / video, "copy": copy, **shared},
            )
            for video, copy in copy_of.items()
        ],
        record=record,
        title="transcoding",
        workers=workers,
        timeout=timeout,
        intact=lambda result: has_size(out_root / result["copy"], result["bytes"]),
    )
    copies = {result["copy"]: result for result in outcomes.results.values()}
    with replacing(out_root / "SHA256SUMS") as sums:
        sums.write_text("".join(f"{made['sha256']}  {copy}\n" for copy, made in copies.items()))
    if outcomes.failures and not allow_damaged:
        raise UserError(
            f"{_describe(outcomes.failures)}; the other {len(copies)} are done: repair these and "
            "call again, or pass --allow-damaged to leave them out of the lists"
        )
    made = {video: copy for video, copy in copy_of.items() if video in outcomes.results}
    renamed = {
        name: [row._replace(video=made[row.video]) for row in part if row.video in made]
        for name, part in rows.items()
    }
    return TranscodeReport(copies, outcomes.failures, write_lists(renamed, out), outcomes.resumed)


def name_copies(videos: Sequence[str]) -> dict[str, str]:
    """The copy's path of each video: its own with the suffix `.mp4`, appended if that is taken."""
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


def encode(
    path: Path, copy: str, *, out_root: Path, scratch: Path, settings: Settings
) -> jobs.Result:
    """Write the copy of one video. Raises VideoError if it cannot be decoded whole."""
    with jobs.replacing(out_root / copy, scratch=scratch) as partial:
        with (
            decoding(path) as source,
            av.open(
                str(partial.absolute()), "w", format="mp4", options={"movflags": "+faststart"}
            ) as target,
        ):
            # 1001 covers the rates of television (30000/1001); odd headers have absurd fractions.
            rate = Fraction(source.rate or PLAIN_RATE).limit_denominator(1001)
            # Where the rate varies, the copy keeps its pace by these presentation times.
            with open_reader(path) as reader:
                times = reader.times
            stream, scaler, frames, pts = None, VideoReformatter(), 0, -1
            for frames, frame in enumerate(source.frames, start=1):
                settle_colours(frame)
                orientation, _ = orientation_of(frame)
                if stream is None:
                    height, width = _even_size(frame, settings)
                    stream = _add_stream(
                        target,
                        frame,
                        (width, height) if orientation.transposed else (height, width),
                        rate=rate,
                        settings=settings,
                    )
                    if times is not None:
                        stream.codec_context.time_base = CLOCK
                    aspect = (source.pixel_aspect * frame.width * height) / (frame.height * width)
                    aspect = 1 / aspect if orientation.transposed else aspect
                    stream.codec_context.sample_aspect_ratio = aspect.limit_denominator(255)
                ends = {
                    f"{end}_{k}": v for k, v in _colours(frame).items() for end in ("src", "dst")
                }
                scaled = scaler.reformat(
                    frame,
                    width=width,
                    height=height,
                    format="yuv420p",
                    interpolation="AREA",
                    **ends,
                )
                scaled = _upright(scaled, orientation)
                scaled.pts, scaled.time_base = frames - 1, 1 / rate
                if times is not None:  # rising, whatever the original's clock rounds to
                    scaled.time_base = CLOCK
                    pts = max(pts + 1, round(times[frames - 1] / CLOCK))
                    scaled.pts = pts
                scaled.pict_type = 0  # the encoder's choice, not the original's
                target.mux(stream.encode(scaled))
            assert stream is not None  # `decoding` raises for a video without frames
            target.mux(stream.encode())
        # Counted again: a copy that lost one frame would shift the numbers of all after it.
        with decoding(partial) as made:
            kept = sum(1 for _ in made.frames)
        if kept != frames:
            raise VideoError(path, f"its copy has {kept} frames instead of {frames}")
        digest, size = sha256_of(partial), partial.stat().st_size
    return {"copy": copy, "frames": frames, "bytes": size, "sha256": digest}


def _even_size(frame: Any, settings: Settings) -> tuple[int, int]:
    """(H, W) of a copy: even, as H.264 needs it, the aspect kept as nearly as that allows."""
    scale = min(1.0, settings.short_side / min(frame.width, frame.height))
    height, width = (max(2, 2 * round(side * scale / 2)) for side in (frame.height, frame.width))
    return height, width


def _upright(frame: Any, orientation: Orientation) -> Any:
    """A yuv420p frame as it is shown, so that its copy needs no display matrix."""
    if orientation == AS_STORED:
        return frame
    height, width = frame.height, frame.width
    if orientation.transposed:
        height, width = width, height
    turned = av.VideoFrame(width, height, "yuv420p")
    turned.colorspace, turned.color_range = frame.colorspace, frame.color_range
    for plane, into in zip(frame.planes, turned.planes, strict=True):
        pixels_of(into)[:] = orientation.applied(pixels_of(plane))
    return turned


def _add_stream(
    target: Any, first: Any, size: tuple[int, int], *, rate: Fraction, settings: Settings
) -> Any:
    """The video stream of a copy of (H, W) whose original begins with the frame `first`."""
    options = {
        "preset": settings.preset,
        "crf": str(settings.crf),
        "g": str(settings.gop),
        # Without B-frames packets come in the order of frames: every seek is exact.
        "bf": "0",
        "tune": "fastdecode",  # 3 % more bytes, half the time to decode
    }
    stream = target.add_stream("libx264", rate=rate, options=options)
    stream.height, stream.width = size
    stream.pix_fmt = "yuv420p"
    stream.thread_count = 1  # the processes share the cores
    for key, value in _colours(first).items():
        setattr(stream.codec_context, key, value)
    return stream


def _colours(frame: Any) -> dict[str, int]:
    """The colour space and range of a frame and its copy; empty for RGB, which has neither."""
    if frame.format.is_rgb:
        return {}
    return {"colorspace": frame.colorspace, "color_range": frame.color_range}


def _describe(failures: Mapping[str, str]) -> str:
    named = [f"{video} ({reason})" for video, reason in failures.items()]
    return f"{len(failures)} videos cannot be decoded whole: {shorten(named, most=2)}"
