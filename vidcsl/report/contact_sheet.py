"""What a model is fed, to be looked at: clips as decoded and as augmented, in PNG and HTML."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from vidcsl.io import replacing
from vidcsl.report.page import TEMPLATES, templates
from vidcsl.report.pictures import chosen_frames, player

_LINE, _GAP, _MARGIN = 18, 4, 16  # pixels
_INK, _SOFT, _PAGE = "#1a1d21", "#575d66", "#ffffff"
_SMALLEST = 96  # smaller frames are enlarged by whole factors, to at least this height


@dataclass(frozen=True)
class View:
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
        """How much larger than they are its frames are shown."""
        return -(-_SMALLEST // min(_SMALLEST, self.decoded.shape[1], self.fed.shape[1]))


@dataclass(frozen=True)
class Sample:
    """A video, its views, and what is known of it; `fps` is 0 where the file does not say."""

    video: str
    class_name: str
    frames: int
    fps: float
    views: tuple[View, ...]

    @property
    def facts(self) -> str:
        """One line about it."""
        length = f"{self.frames} frames"
        rate = f" at {self.fps:.4g}/s" if self.fps else ""
        return f"{self.class_name or 'unlabelled'} · {self.video} · {length}{rate}"


def write_contact_sheet(samples: Sequence[Sample], folder: Path, *, title: str) -> list[Path]:
    """Write `clips.png` and `clips.html`, in which the clips move.

    Args:
        samples: at least one.
        folder: made if need be.
        title: what is shown, in one line.

    Returns:
        The two files.
    """
    picture, page = folder / "clips.png", folder / "clips.html"
    with replacing(picture) as partial:
        draw_sheet(samples, title=title).save(partial, format="PNG", optimize=True)
    with replacing(page) as partial:
        partial.write_text(render_page(samples, title=title), encoding="utf-8")
    return [picture, page]


def draw_sheet(samples: Sequence[Sample], *, title: str) -> Image.Image:
    """A sheet of film strips: for each view its frames as decoded, and below as fed."""
    heading = f"{title} (above as decoded, below as fed to the model)"
    rows = [_draw_text(heading, size=16), *(row for sample in samples for row in _draw(sample))]
    width = max(row.width for row in rows) + 2 * _MARGIN
    sheet = Image.new("RGB", (width, sum(row.height for row in rows) + 2 * _MARGIN), _PAGE)
    top = _MARGIN
    for row in rows:
        sheet.paste(row, (_MARGIN, top))
        top += row.height
    return sheet


def _draw(sample: Sample) -> list[Image.Image]:
    rows = [_draw_text(sample.facts, size=14, above=14)]
    for k, view in enumerate(sample.views, start=1):
        shown = chosen_frames(len(view.numbers), view.decoded[0, ..., 0].size)
        numbers = [view.numbers[i] for i in shown]
        words = f"view {k}: frames {', '.join(map(str, numbers))}"
        left_out = len(view.numbers) - len(shown)
        rows.append(_draw_text(words + (f" ({left_out} between them)" if left_out else "")))
        pitch = view.factor * max(frames.shape[2] for _, frames in view.strips) + _GAP
        rows += [
            _draw_strip(frames[list(shown)], factor=view.factor, pitch=pitch)
            for _, frames in view.strips
        ]
    return rows


def _draw_strip(frames: NDArray[np.uint8], *, factor: int, pitch: int) -> Image.Image:
    """Frames [T, H, W, 3] side by side, one every `pitch` pixels."""
    _, height, width, _ = frames.shape
    strip = Image.new("RGB", (pitch * len(frames), factor * height + _GAP), _PAGE)
    for k, frame in enumerate(frames):
        picture = Image.fromarray(frame)
        picture = picture.resize((factor * width, factor * height), Image.Resampling.NEAREST)
        strip.paste(picture, (k * pitch, 0))
    return strip


def _draw_text(text: str, *, size: int = 12, above: int = 2) -> Image.Image:
    font = ImageFont.load_default(size)
    width = int(font.getlength(text)) + 1
    image = Image.new("RGB", (width, _LINE + above + 2), _PAGE)
    ink = _INK if size > 12 else _SOFT
    ImageDraw.Draw(image).text((0, above), text, fill=ink, font=font)
    return image


def render_page(samples: Sequence[Sample], *, title: str) -> str:
    """The page as text, self-contained; the same samples give the same text."""
    return (
        templates()
        .get_template("clips.html.j2")
        .render(
            title=title,
            samples=[
                {"facts": sample.facts, "frames": sample.frames, "views": _films(sample)}
                for sample in samples
            ],
            style=Markup((TEMPLATES / "report.css").read_text(encoding="utf-8")),
        )
    )


def _films(sample: Sample) -> list[dict[str, object]]:
    """For each view the films of both strips, and where its frames lie in the video."""
    return [
        {
            "numbers": view.numbers,
            "films": [
                (
                    name,
                    player(
                        frames,
                        label=f"{sample.video}, {name}",
                        fps=_speed(sample, view),
                        width=view.factor * frames.shape[2],
                    ),
                )
                for name, frames in view.strips
            ],
        }
        for view in sample.views
    ]


def _speed(sample: Sample, view: View) -> float:
    """Frames a second at which a clip moves as it did before the camera."""
    steps = np.diff(view.numbers)
    stride = float(np.median(steps[steps > 0])) if (steps > 0).any() else 1.0
    return float(np.clip((sample.fps or 25) / stride, 1, 60))
