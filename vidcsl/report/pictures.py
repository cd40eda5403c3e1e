"""Pictures and films of a run."""

import base64
import io
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import av
import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image

from vidcsl.errors import UserError

# ----------------------------------------------------------------------
# Arrays that a run kept for its report: read whole, or an error that says what to do.


def read_arrays(path: Path, *names: str) -> list[NDArray[Any]]:
    """The arrays of an `.npz` file by name.

    Raises:
        UserError: the file is damaged or lacks one of them.
    """
    with _opened(path) as stored:
        for name in names:
            if name not in stored.files:
                raise UserError(f"{path} has no array {name!r}; run the evaluation again")
        return [stored[name] for name in names]


def has_array(path: Path, name: str) -> bool:
    """Whether the file holds an array of this name. Raises as `read_arrays`."""
    with _opened(path) as stored:
        return name in stored.files


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with np.load(path, allow_pickle=False) as stored:
            yield stored
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        raise UserError(f"cannot read {path}: {error}; run the evaluation again") from error


# ----------------------------------------------------------------------
# Moving pictures inside a page: frames as a small H.264 film in the page itself.

_GAP = 8  # pixels between clips side by side


def encode_mp4(frames: NDArray[np.uint8], *, fps: float = 12, quality: int = 18) -> bytes:
    """Frames as an MP4 film that every browser plays.

    Args:
        frames: uint8 `[T, H, W, 3]`, RGB, T >= 1. An odd height or width is padded by one pixel,
            as the format stores colour at half the resolution.
        fps: frames per second.
        quality: x264's constant rate factor: 0 is the best, 18 hard to tell from the original.

    Raises:
        ValueError: the frames have another shape or type.
    """
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not len(frames):
        raise ValueError(f"frames must be uint8 [T, H, W, 3], not {frames.dtype} {frames.shape}")
    height, width = frames.shape[1:3]
    padded = np.pad(frames, [(0, 0), (0, height % 2), (0, width % 2), (0, 0)], "edge")
    film = io.BytesIO()
    with av.open(film, "w", format="mp4") as container:
        rate = Fraction(fps).limit_denominator(1000)
        stream = container.add_stream("libx264", rate=rate)
        stream.height, stream.width, stream.pix_fmt = padded.shape[1], padded.shape[2], "yuv420p"
        stream.options = {"crf": str(quality), "preset": "slow"}
        stream.thread_count = 1
        for pixels in padded:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    return film.getvalue()


def player(
    frames: NDArray[np.uint8],
    *,
    label: str,
    fps: float = 12,
    width: int | None = None,
    quality: int = 18,
    autoplay: bool = True,
) -> Markup:
    """A `<video>` element that plays frames over and over, with nothing outside the page.

    Args:
        frames: uint8 `[T, H, W, 3]`, RGB.
        label: what it shows, for those who cannot see it.
        fps: frames per second.
        width: on the page, in CSS pixels; by default that of the frames.
        quality: see `encode_mp4`.
        autoplay: whether it plays at once; a page with many films starts them by a script.

    A page that forbids outside content needs `media-src data:` in its policy.
    """
    film = base64.b64encode(encode_mp4(frames, fps=fps, quality=quality)).decode()
    width = width or frames.shape[2]
    height = round(width * frames.shape[1] / frames.shape[2])
    return Markup(
        '<video src="data:video/mp4;base64,{}" width="{}" height="{}" aria-label="{}" '
        "{} loop muted playsinline controls></video>"
    ).format(film, width, height, label, Markup("autoplay" if autoplay else 'preload="none"'))


def side_by_side(clips: Sequence[NDArray[np.uint8]], *, panel: int) -> NDArray[np.uint8]:
    """Clips `[T, H, W, 3]` of one shape as one film, so that they never run apart.

    Args:
        clips: uint8, left to right.
        panel: pixels of each one's longer side, about: browsers blur what they enlarge themselves.
    """
    times = max(1, round(panel / max(clips[0].shape[1:3])))
    large = [clip.repeat(times, axis=1).repeat(times, axis=2) for clip in clips]
    gap = np.full((*large[0].shape[:2], _GAP, 3), 128, np.uint8)
    return np.concatenate([part for clip in large for part in (gap, clip)][1:], axis=2)


# ----------------------------------------------------------------------
# A clip under attack, clean, perturbed and their difference: as one film, and as strips in PNG.

_PIXELS = 16 * 128 * 128  # of a strip: keeps the report small enough to mail
_FEWEST_FRAMES = 4
_PANEL = 224  # pixels of the film's panels, at least: browsers blur what they enlarge
_FPS = 8


@dataclass(frozen=True)
class Film:
    """One strip: what it shows, and its frames side by side as a data URI."""

    title: str
    uri: str


@dataclass(frozen=True)
class AttackPicture:
    """The film and the strips of one attacked clip, and what to say about them."""

    attack: str
    eps: str
    label: str
    clean_prediction: str
    adversarial_prediction: str
    moving: Markup
    films: tuple[Film, ...]
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
    clean, difference, *words = read_arrays(
        path, "clean", "difference", "eps", "label", "clean_prediction", "adversarial_prediction"
    )
    if clean.ndim != 4 or clean.shape[-1] != 3 or clean.shape != difference.shape:
        raise UserError(
            f"{path}: clean {clean.shape} and difference {difference.shape} must be [T, H, W, 3]"
        )
    attack = path.stem.removeprefix("attack_").partition(".")[0]
    return _picture(attack, [str(word) for word in words], clean, difference.astype(np.float32))


def _picture(
    attack: str, words: list[str], clean: NDArray[np.uint8], difference: NDArray[np.float32]
) -> AttackPicture:
    count, height, width, _ = clean.shape
    largest = float(np.abs(np.nan_to_num(difference)).max(initial=0.0))
    factor = amplification(largest)
    kept = chosen_frames(count, height * width)
    pixels = clean / np.float32(255)
    rows = {
        "Clean": pixels,
        "Perturbed": pixels + difference,
        f"Difference × {factor:g}": 0.5 + factor * difference,
    }
    shown = {title: _eight_bit(frames) for title, frames in rows.items()}
    films = tuple(Film(title, strip_uri(frames[list(kept)])) for title, frames in shown.items())
    moving = player(
        side_by_side(list(shown.values()), panel=_PANEL), label=", ".join(shown), fps=_FPS
    )
    eps, label, before, after = words
    return AttackPicture(
        attack=attack,
        eps=eps,
        label=label,
        clean_prediction=before,
        adversarial_prediction=after,
        moving=moving,
        films=films,
        frames=kept,
        length=count,
        width=width,
        height=height,
        factor=factor,
        largest=largest,
    )


def chosen_frames(count: int, pixels: int) -> tuple[int, ...]:
    """Frames to show, evenly spread: all where they are small, at least a few where not."""
    shown = min(count, max(_FEWEST_FRAMES, _PIXELS // pixels))
    return tuple(int(i) for i in np.linspace(0, count - 1, shown).round())


def amplification(largest: float) -> float:
    """The largest of 1, 2, 5, 10, 20, ... that keeps 0.5 + factor x difference in [0, 1]."""
    if largest <= 0:
        return 1.0
    wanted = 0.5 / largest * (1 + 1e-6)
    power = 10.0 ** math.floor(math.log10(wanted))
    return max(1.0, *(m * power for m in (1, 2, 5) if m * power <= wanted))


def _eight_bit(frames: NDArray[np.float32]) -> NDArray[np.uint8]:
    return (np.nan_to_num(frames, nan=0.5).clip(0, 1) * 255).round().astype(np.uint8)


def strip_uri(frames: NDArray[np.uint8]) -> str:
    """Frames uint8 `[T, H, W, 3]` side by side, as the data URI of a PNG."""
    file = io.BytesIO()
    Image.fromarray(np.concatenate(list(frames), axis=1)).save(file, "png", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


# ----------------------------------------------------------------------
# What was kept to be looked at: pairs that were flagged, and clips under corruption.

_EXAMPLES_PANEL = 180  # pixels: smaller clips are enlarged
_EXAMPLES_FPS = 8.0


@dataclass(frozen=True)
class Side:
    """One video of a pair: its frames side by side, its class and its file."""

    uri: str
    class_name: str
    video: str


@dataclass(frozen=True)
class Pair:
    """A pair that was flagged: the anchor, the video that was taken for its like, and how alike."""

    anchor: Side
    candidate: Side
    similarity: float
    right: bool


@dataclass(frozen=True)
class CorruptedClip:
    """A clip clean and at growing severities, in one film, and what the model took it for."""

    name: str
    label: str
    severities: tuple[int, ...]
    predictions: tuple[str, ...]
    film: Markup


def read_pairs(path: Path) -> list[Pair]:
    """The pairs of `artifacts/pairs.npz`, right ones first; none where there is no such file.

    Raises:
        UserError: the file is damaged.
    """
    if not path.is_file():
        return []
    names = ("anchors", "candidates", "similarity", "right", "classes", "videos")
    anchors, candidates, similarity, right, classes, videos = read_arrays(path, *names)
    sides = [
        [
            Side(strip_uri(frames), str(class_name), str(video))
            for frames, class_name, video in zip(clips, classes[:, k], videos[:, k], strict=True)
        ]
        for k, clips in enumerate((anchors, candidates))
    ]
    return [
        Pair(anchor, candidate, float(value), bool(is_right))
        for anchor, candidate, value, is_right in zip(*sides, similarity, right, strict=True)
    ]


def read_corrupted(folder: Path) -> dict[str, list[CorruptedClip]]:
    """The clips of `corruption_SUITE.NAME.npz`, by suite.

    Raises:
        UserError: a file is damaged.
    """
    found: dict[str, list[CorruptedClip]] = {}
    for path in sorted(folder.glob("corruption_*.npz")):
        suite, _, name = path.stem.removeprefix("corruption_").partition(".")
        found.setdefault(suite, []).append(_corrupted(path, name))
    return found


def _corrupted(path: Path, name: str) -> CorruptedClip:
    frames, severities, label, predictions = read_arrays(
        path, "frames", "severities", "label", "predictions"
    )
    shown = ", ".join(f"severity {s}" if s else "clean" for s in severities)
    return CorruptedClip(
        name=name,
        label=str(label),
        severities=tuple(int(s) for s in severities),
        predictions=tuple(str(named) for named in predictions),
        film=player(
            side_by_side(list(frames), panel=_EXAMPLES_PANEL),
            label=f"{name.replace('_', ' ')}: {shown}",
            fps=_EXAMPLES_FPS,
            autoplay=False,
        ),
    )
