"""A clip under attack, clean, perturbed and their difference: as one film, and as strips in PNG."""

import base64
import math
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from vidcsl.errors import UserError
from vidcsl.report.player import player

_PIXELS = 16 * 128 * 128  # of a strip: keeps the report small enough to mail
_FEWEST_FRAMES = 4
_PANEL = 224  # pixels of the film's panels, at least: browsers blur what they enlarge
_GAP = 8
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
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        clean, difference = arrays["clean"], arrays["difference"].astype(np.float32)
        words = [
            str(arrays[name])
            for name in ("eps", "label", "clean_prediction", "adversarial_prediction")
        ]
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        raise UserError(f"cannot read {path}: {error}; run the evaluation again") from error
    except KeyError as error:
        raise UserError(f"{path} has no array {error}; run the evaluation again") from error
    if clean.ndim != 4 or clean.shape[-1] != 3 or clean.shape != difference.shape:
        raise UserError(
            f"{path}: clean {clean.shape} and difference {difference.shape} must be [T, H, W, 3]"
        )
    return _picture(path.stem.removeprefix("attack_").partition(".")[0], words, clean, difference)


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
    films = tuple(Film(title, _strip_uri(frames[list(kept)])) for title, frames in shown.items())
    moving = player(_side_by_side(list(shown.values())), label=", ".join(shown), fps=_FPS)
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


def _side_by_side(rows: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Panels `[T, H, W, 3]` as one film, so that they never run apart; small ones enlarged."""
    times = max(1, round(_PANEL / max(rows[0].shape[1:3])))
    large = [row.repeat(times, axis=1).repeat(times, axis=2) for row in rows]
    gap = np.full((*large[0].shape[:2], _GAP, 3), 128, np.uint8)
    return np.concatenate([large[0], gap, large[1], gap, large[2]], axis=2)


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


def encode_png(image: NDArray[np.uint8]) -> bytes:
    """An RGB image `[H, W, 3]` as PNG (ISO/IEC 15948), a row stored as its change upwards."""
    height, width, _ = image.shape
    rows = image.reshape(height, width * 3)
    above = np.vstack([np.zeros_like(rows[:1]), rows[:-1]])
    up = np.full((height, 1), 2, np.uint8)
    data = np.hstack([up, rows - above])  # wraps at 256, as the format asks
    header = struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(data.tobytes(), 9)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks
    )


def _eight_bit(frames: NDArray[np.float32]) -> NDArray[np.uint8]:
    return (np.nan_to_num(frames, nan=0.5).clip(0, 1) * 255).round().astype(np.uint8)


def _strip_uri(frames: NDArray[np.uint8]) -> str:
    """Frames `[T, H, W, 3]` side by side, as a data URI."""
    strip = np.ascontiguousarray(np.concatenate(list(frames), axis=1))
    return "data:image/png;base64," + base64.b64encode(encode_png(strip)).decode()
