"""What the report shows of the clips themselves: moving pictures and strips of frames.

All stand in the page itself, as data URIs: clips as small H.264 videos, frames as PNG.
"""

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image

from vidcsl.errors import UserError
from vidcsl.report.summary import has_array, read_arrays

_STRIP_PIXELS = 16 * 128 * 128  # of a strip: keeps the report small enough to mail
_FEWEST_FRAMES = 4
_FPS = 8
_JPEG_QUALITY = 82
_GAP = 8  # pixels between clips side by side
# Browsers blur what they enlarge themselves, so that small clips are enlarged here.
_ATTACK_PANEL, _CORRUPTED_PANEL = 224, 180  # pixels of the longer side, about


def encode_mp4(frames: NDArray[np.uint8], *, fps: float = 12, quality: int = 18) -> bytes:
    """Frames as an MP4 video that every browser plays.

    Args:
        frames: uint8 `[T, H, W, 3]`, RGB, T >= 1. An odd height or width is padded by one pixel,
            as the format stores colour at half the resolution.
        fps: frames per second.
        quality: x264's constant rate factor: 0 is the best, 18 hard to tell from the original.

    Raises:
        ValueError: the frames have another shape or type.
    """
    import av  # a report without clips does without

    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not len(frames):
        raise ValueError(f"frames must be uint8 [T, H, W, 3], not {frames.dtype} {frames.shape}")
    height, width = frames.shape[1:3]
    padded = np.pad(frames, [(0, 0), (0, height % 2), (0, width % 2), (0, 0)], "edge")
    video = io.BytesIO()
    with av.open(video, "w", format="mp4") as container:
        rate = Fraction(fps).limit_denominator(1000)
        stream = container.add_stream("libx264", rate=rate)
        stream.height, stream.width, stream.pix_fmt = padded.shape[1], padded.shape[2], "yuv420p"
        # "slow": a report is written once and mailed often.
        stream.options = {"crf": str(quality), "preset": "slow"}
        # x264's output depends on the number of threads.
        stream.thread_count = 1
        for pixels in padded:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    return video.getvalue()


def player(
    frames: NDArray[np.uint8],
    *,
    label: str,
    fps: float = 12,
    width: int | None = None,
    quality: int = 18,
    autoplay: bool = True,
    controls: bool = True,
) -> Markup:
    """A `<video>` element that repeats frames, with nothing outside the page.

    Args:
        frames: uint8 `[T, H, W, 3]`, RGB.
        label: what it shows, for those who cannot see it.
        fps: frames per second.
        width: on the page, in CSS pixels; by default that of the frames.
        quality: see `encode_mp4`.
        autoplay: whether it plays at once; a page with many videos starts them by a script.
        controls: whether the browser shows its own; they cover small pictures.

    A page that forbids outside content needs `media-src data:` and `img-src data:` in its policy.
    """
    video = base64.b64encode(encode_mp4(frames, fps=fps, quality=quality)).decode()
    width = width or frames.shape[2]
    height = round(width * frames.shape[1] / frames.shape[2])
    # Without one a video that does not play, on paper or for want of a codec, is a black box.
    poster = strip_uri(frames[len(frames) // 2][None], lossy=True)
    start = "autoplay" if autoplay else 'preload="none"'
    return Markup(
        '<video src="data:video/mp4;base64,{}" poster="{}" width="{}" height="{}" aria-label="{}" '
        "{} loop muted playsinline{}></video>"
    ).format(*(video, poster, width, height, label, Markup(start)), " controls" if controls else "")


def side_by_side(clips: Sequence[NDArray[np.uint8]], *, panel: int) -> NDArray[np.uint8]:
    """Clips `[T, H, W, 3]` of one shape as one clip: separate videos would run apart.

    Args:
        clips: uint8, left to right.
        panel: pixels of each one's longer side, about.
    """
    times = max(1, round(panel / max(clips[0].shape[1:3])))
    large = [clip.repeat(times, axis=1).repeat(times, axis=2) for clip in clips]
    gap = np.full((*large[0].shape[:2], _GAP, 3), 128, np.uint8)
    return np.concatenate([part for clip in large for part in (gap, clip)][1:], axis=2)


def strip_uri(frames: NDArray[np.uint8], *, lossy: bool = False) -> str:
    """Frames uint8 `[T, H, W, 3]` side by side, as the data URI of a PNG, or of a lossy JPEG."""
    kind, options = ("jpeg", {"quality": _JPEG_QUALITY}) if lossy else ("png", {"optimize": True})
    file = io.BytesIO()
    Image.fromarray(np.concatenate(list(frames), axis=1)).save(file, kind, **options)
    return f"data:image/{kind};base64," + base64.b64encode(file.getvalue()).decode()


def chosen_frames(count: int, pixels: int) -> tuple[int, ...]:
    """Indices of the frames to show, evenly spread: all of small frames, a few of large ones."""
    shown = min(count, max(_FEWEST_FRAMES, _STRIP_PIXELS // pixels))
    return tuple(int(i) for i in np.linspace(0, count - 1, shown).round())


# ----------------------------------------------------------------------
# A clip under attack: clean, perturbed, and their difference.


@dataclass(frozen=True)
class AttackPicture:
    """An attacked clip, moving and as strips of frames, and the model's predictions.

    Attributes:
        strips: (title, data URI) of the three rows; `frames` are the indices shown of `length`.
        factor: by which the difference is amplified; `largest` is its largest value, in [0, 1].
    """

    attack: str
    eps: str
    label: str
    clean_prediction: str
    adversarial_prediction: str
    moving: Markup
    strips: tuple[tuple[str, str], ...]
    frames: tuple[int, ...]
    length: int
    width: int
    height: int
    factor: float
    largest: float


def read_attack_picture(path: Path) -> AttackPicture:
    """The pictures of `artifacts/attack_<name>.<video>.npz` (see docs/design.md, "A run's folder").

    Raises:
        UserError: the file is damaged or lacks an array.
    """
    clean, stored, eps, label, before, after = read_arrays(
        path, "clean", "difference", "eps", "label", "clean_prediction", "adversarial_prediction"
    )
    if clean.ndim != 4 or clean.shape[-1] != 3 or clean.shape != stored.shape:
        raise UserError(
            f"{path}: clean {clean.shape} and difference {stored.shape} must be [T, H, W, 3]"
        )
    difference = stored.astype(np.float32)
    count, height, width, _ = clean.shape
    largest = float(np.abs(np.nan_to_num(difference)).max(initial=0.0))
    factor = amplification(largest)
    pixels = clean / np.float32(255)
    rows = {
        title: (np.nan_to_num(values, nan=0.5).clip(0, 1) * 255).round().astype(np.uint8)
        for title, values in {
            "Clean": pixels,
            "Perturbed": pixels + difference,
            # Around mid-grey, as a difference has either sign.
            f"Difference × {factor:g}": 0.5 + factor * difference,
        }.items()
    }
    frames = chosen_frames(count, height * width)
    return AttackPicture(
        attack=path.stem.removeprefix("attack_").partition(".")[0],
        eps=str(eps),
        label=str(label),
        clean_prediction=str(before),
        adversarial_prediction=str(after),
        moving=player(
            side_by_side(list(rows.values()), panel=_ATTACK_PANEL), label=", ".join(rows), fps=_FPS
        ),
        strips=tuple((title, strip_uri(row[list(frames)])) for title, row in rows.items()),
        frames=frames,
        length=count,
        width=width,
        height=height,
        factor=factor,
        largest=largest,
    )


def amplification(largest: float) -> float:
    """The largest of 1, 2, 5, 10, 20, ... that keeps 0.5 + factor x difference in [0, 1]."""
    if largest <= 0:
        return 1.0
    wanted = 0.5 / largest * (1 + 1e-6)
    power = 10.0 ** math.floor(math.log10(wanted))
    return max(1.0, *(m * power for m in (1, 2, 5) if m * power <= wanted))


# ----------------------------------------------------------------------
# Pairs that were flagged as false negatives, and clips under corruption.


@dataclass(frozen=True)
class PairVideo:
    """One video of a pair: its frames side by side, its class and its file.

    `original` are the same frames as they are in its file; empty where only `uri` is known.
    """

    uri: str
    class_name: str
    video: str
    original: str = ""


@dataclass(frozen=True)
class PairPicture:
    """A flagged pair; `correct` where both videos are of one class."""

    anchor: PairVideo
    candidate: PairVideo
    similarity: float
    correct: bool


@dataclass(frozen=True)
class CorruptedClip:
    """A clip clean and at growing severities, side by side in one video, and the predictions.

    `width` and `height` are those of the clip, in pixels.
    """

    name: str
    label: str
    width: int
    height: int
    severities: tuple[int, ...]
    predictions: tuple[str, ...]
    video: Markup


def read_pairs(path: Path) -> list[PairPicture]:
    """The pairs of `artifacts/pairs.npz`, correct ones first; none where the file is absent.

    Raises:
        UserError: the file is damaged.
    """
    if not path.is_file():
        return []
    names = ("anchors", "candidates", "similarity", "right", "classes", "videos")
    anchors, candidates, similarity, correct, classes, videos = read_arrays(path, *names)
    known = has_array(path, "originals")  # runs of earlier versions lack them
    originals = read_arrays(path, "originals")[0] if known else None

    def side(pair: int, k: int) -> PairVideo:
        return PairVideo(
            strip_uri((anchors, candidates)[k][pair]),
            str(classes[pair, k]),
            str(videos[pair, k]),
            "" if originals is None else strip_uri(originals[pair, k], lossy=True),
        )

    return [
        PairPicture(side(i, 0), side(i, 1), float(similarity[i]), bool(correct[i]))
        for i in range(len(anchors))
    ]


def read_corrupted(folder: Path) -> dict[str, list[CorruptedClip]]:
    """The clips of `corruption_SUITE.NAME.npz`, by suite.

    Raises:
        UserError: a file is damaged.
    """
    found: dict[str, list[CorruptedClip]] = {}
    for path in sorted(folder.glob("corruption_*.npz")):
        suite, _, name = path.stem.removeprefix("corruption_").partition(".")
        frames, severities, label, predictions = read_arrays(
            path, "frames", "severities", "label", "predictions"
        )
        shown = ", ".join(f"severity {s}" if s else "clean" for s in severities)
        clip = CorruptedClip(
            name=name,
            label=str(label),
            width=frames.shape[3],
            height=frames.shape[2],
            severities=tuple(int(s) for s in severities),
            predictions=tuple(str(each) for each in predictions),
            video=player(
                side_by_side(list(frames), panel=_CORRUPTED_PANEL),
                label=f"{name.replace('_', ' ')}: {shown}",
                fps=_FPS,
                autoplay=False,
            ),
        )
        found.setdefault(suite, []).append(clip)
    return found
