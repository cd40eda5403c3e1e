"""A clip under attack, clean, perturbed and their difference: as one film, and as strips in PNG."""

import base64
import io
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image

from vidcsl.errors import UserError
from vidcsl.report.artifacts import read_arrays
from vidcsl.report.player import player, side_by_side

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
