"""Pages without a run: a contact sheet of what a model is fed, and a gallery of corruptions."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from vidcsl.io import replacing
from vidcsl.report.page import style_sheet, templates
from vidcsl.report.pictures import chosen_frames, player

_LINE, _GAP, _MARGIN = 18, 4, 16  # pixels
_INK, _SOFT, _PAGE = "#1a1d21", "#575d66", "#ffffff"
_SMALLEST = 96  # smaller frames are enlarged by whole factors, to at least this height
# Coarser than elsewhere: strong noise, which hides the coding, would make the gallery too large.
_GALLERY_QUALITY = 24


@dataclass(frozen=True)
class ShownView:
    """One clip of a video.

    Attributes:
        numbers: of its frames in the video, [T].
        decoded: whole frames, uint8 [T, H, W, 3].
        fed: the same frames as the model gets them, uint8 [T, S, S, 3].
    """

    numbers: tuple[int, ...]
    decoded: NDArray[np.uint8]
    fed: NDArray[np.uint8]

    @property
    def strips(self) -> tuple[tuple[str, NDArray[np.uint8]], ...]:
        """Both with their names."""
        return ("decoded", self.decoded), ("fed", self.fed)

    @property
    def factor(self) -> int:
        """By which its frames are enlarged."""
        return -(-_SMALLEST // min(_SMALLEST, self.decoded.shape[1], self.fed.shape[1]))


@dataclass(frozen=True)
class ShownVideo:
    """A video with its views; `fps` is 0 where the file does not state it."""

    video: str
    class_name: str
    frames: int
    fps: float
    views: tuple[ShownView, ...]

    @property
    def facts(self) -> str:
        """One line about it."""
        length = f"{self.frames} frames"
        rate = f" at {self.fps:.4g}/s" if self.fps else ""
        return f"{self.class_name or 'unlabelled'} · {self.video} · {length}{rate}"


def write_contact_sheet(videos: Sequence[ShownVideo], folder: Path, *, title: str) -> list[Path]:
    """Write `clips.png` and `clips.html`, in which the clips move.

    Args:
        videos: at least one.
        folder: created if absent.
        title: what is shown, in one line.

    Returns:
        The two files.
    """
    picture, page = folder / "clips.png", folder / "clips.html"
    with replacing(picture) as partial:
        draw_sheet(videos, title=title).save(partial, format="PNG", optimize=True)
    with replacing(page) as partial:
        partial.write_text(render_sheet(videos, title=title), encoding="utf-8")
    return [picture, page]


def draw_sheet(videos: Sequence[ShownVideo], *, title: str) -> Image.Image:
    """Strips of frames, for each view as decoded and below as fed to the model."""
    rows = [_draw_text(f"{title} (above as decoded, below as fed to the model)", size=16)]
    for video in videos:
        rows.append(_draw_text(video.facts, size=14, above=14))
        for k, view in enumerate(video.views, start=1):
            shown = list(chosen_frames(len(view.numbers), view.decoded[0, ..., 0].size))
            text = f"view {k}: frames {', '.join(str(view.numbers[i]) for i in shown)}"
            left_out = len(view.numbers) - len(shown)
            rows.append(_draw_text(text + (f" ({left_out} between them)" if left_out else "")))
            # Both strips advance by the wider frames, so that a frame stands below itself.
            pitch = view.factor * max(frames.shape[2] for _, frames in view.strips) + _GAP
            for _, frames in view.strips:
                height, width = (view.factor * side for side in frames.shape[1:3])
                strip = Image.new("RGB", (pitch * len(shown), height + _GAP), _PAGE)
                for place, i in enumerate(shown):
                    enlarged = Image.fromarray(frames[i]).resize(
                        (width, height), Image.Resampling.NEAREST
                    )
                    strip.paste(enlarged, (place * pitch, 0))
                rows.append(strip)
    width = max(row.width for row in rows) + 2 * _MARGIN
    sheet = Image.new("RGB", (width, sum(row.height for row in rows) + 2 * _MARGIN), _PAGE)
    top = _MARGIN
    for row in rows:
        sheet.paste(row, (_MARGIN, top))
        top += row.height
    return sheet


def _draw_text(text: str, *, size: int = 12, above: int = 2) -> Image.Image:
    font = ImageFont.load_default(size)
    width = int(font.getlength(text)) + 1
    image = Image.new("RGB", (width, _LINE + above + 2), _PAGE)
    ink = _INK if size > 12 else _SOFT
    ImageDraw.Draw(image).text((0, above), text, fill=ink, font=font)
    return image


def render_sheet(videos: Sequence[ShownVideo], *, title: str) -> str:
    """The page as text, self-contained; the same videos give the same text."""
    shown = []
    for video in videos:
        views = []
        for view in video.views:
            steps = np.diff(view.numbers)
            stride = float(np.median(steps[steps > 0])) if (steps > 0).any() else 1.0
            # The clip moves as fast as the scene did.
            fps = float(np.clip((video.fps or 25) / stride, 1, 60))
            players = [
                (
                    name,
                    player(
                        frames,
                        label=f"{video.video}, {name}",
                        fps=fps,
                        width=view.factor * frames.shape[2],
                    ),
                )
                for name, frames in view.strips
            ]
            views.append({"numbers": view.numbers, "players": players})
        shown.append({"facts": video.facts, "frames": video.frames, "views": views})
    page = templates().get_template("clips.html.j2")
    return page.render(title=title, videos=shown, style=style_sheet())


@dataclass(frozen=True)
class ShownCorruption:
    """One corruption at each severity.

    Attributes:
        name, category, note: texts about it.
        severities: for each its strength in words, and the frames, uint8 `[T, H, W, 3]`.
    """

    name: str
    category: str
    note: str
    severities: list[tuple[str, NDArray[np.uint8]]]


def write_gallery(
    path: Path,
    suites: Iterable[tuple[str, list[ShownCorruption]]],
    *,
    title: str,
    clean: NDArray[np.uint8],
) -> None:
    """Write a page of corruptions of one clip, self-contained, whole or not at all.

    Args:
        path: of the page.
        suites: headings, and the corruptions under them.
        title: of the page.
        clean: the clip itself, uint8 `[T, H, W, 3]`.
    """

    def moving(frames: NDArray[np.uint8], label: str) -> str:
        return player(frames, label=label, quality=_GALLERY_QUALITY, autoplay=False, controls=False)

    page = templates().get_template("gallery.html.j2")
    text = page.render(
        title=title,
        style=style_sheet(),
        clean=moving(clean, "the clip without corruption"),
        suites=[
            (
                heading,
                [
                    (
                        shown,
                        [
                            (strength, moving(frames, f"{shown.name}, severity {severity}"))
                            for severity, (strength, frames) in enumerate(shown.severities, start=1)
                        ],
                    )
                    for shown in corruptions
                ],
            )
            for heading, corruptions in suites
        ],
    )
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")
