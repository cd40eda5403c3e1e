"""What was kept to be looked at: pairs that were flagged, and clips under corruption."""

from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from vidcsl.report.artifacts import read_arrays
from vidcsl.report.pictures import strip_uri
from vidcsl.report.player import player, side_by_side

_PANEL = 180  # pixels: smaller clips are enlarged
_FPS = 8.0


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
            side_by_side(list(frames), panel=_PANEL),
            label=f"{name.replace('_', ' ')}: {shown}",
            fps=_FPS,
            autoplay=False,
        ),
    )
