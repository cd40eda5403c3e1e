"""A data set to learn from at once: small labelled videos, rendered and written as H.264 files.

A textured object moves before a textured background. Shape, size, colours, place, pace and camera
are random, drawn per source; the class is the way in which the object moves, and the appearance is
no clue to it. Several clips are cut from each source, at other times and under another camera; they
share their group, so the list knows the false negatives.

The motions stay what they are when a clip is mirrored left to right, because training does that.
Rising and falling, and growing and shrinking, show the same frames in another order, so no single
frame tells them apart.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from vidcsl.data.lists import Row, shorten, write_list
from vidcsl.errors import UserError
from vidcsl.io import Bar, replacing
from vidcsl.seeding import numpy_generator

Array = NDArray[np.float32]

VERSION = 1  # part of the marker: a change of the drawing renders old folders again
TEST_EVERY = 4  # each fourth source is for testing, and the last of fewer
SLACK = 0.15  # how far the camera may move off centre, in frame widths
SHAPES: dict[str, Callable[[Array, Array], Array]] = {
    "disc": lambda u, v: np.sqrt(u * u + v * v),
    "box": lambda u, v: np.maximum(np.abs(u), np.abs(v)) * np.float32(1.15),
    "diamond": lambda u, v: (np.abs(u) + np.abs(v)) * np.float32(0.8),
    "cross": lambda u, v: np.minimum(
        np.maximum(np.abs(u), 3 * np.abs(v)), np.maximum(3 * np.abs(u), np.abs(v))
    ),
}


@dataclass(frozen=True)
class Pose:
    """Where the object is in each frame, [T] each. Places in frames, angle in turns."""

    x: Array | float = 0.0
    y: Array | float = 0.0
    scale: Array | float = 1.0
    angle: Array | float = 0.0
    opacity: Array | float = 1.0


def _swing(turns: Array) -> Array:
    return np.sin(2 * np.pi * turns)


def _rise(turns: Array) -> Array:
    """From below the frame to above it, relative to its middle; then again."""
    return np.float32(0.7) - np.float32(1.4) * (turns % 1)


def _grow(turns: Array) -> Array:
    """From less than half the size to more than double; then again."""
    return np.float32(0.45) * np.float32(5) ** (turns % 1)


# Name to (time in periods [T], amplitude in frames, direction +1 or -1) -> change of pose.
MOTIONS: dict[str, Callable[[Array, float, int], Pose]] = {
    "sway": lambda t, a, _d: Pose(x=a * _swing(t)),
    "bob": lambda t, a, _d: Pose(y=a * _swing(t)),
    "diagonal": lambda t, a, d: Pose(x=0.7 * a * _swing(t), y=0.7 * d * a * _swing(t)),
    "orbit": lambda t, a, d: Pose(x=a * _swing(t), y=d * a * _swing(t + 0.25)),
    "rise": lambda t, _a, _d: Pose(y=_rise(t)),
    "fall": lambda t, _a, _d: Pose(y=_rise(-t)),
    "grow": lambda t, _a, _d: Pose(scale=_grow(t)),
    "shrink": lambda t, _a, _d: Pose(scale=_grow(-t)),
    "spin": lambda t, _a, d: Pose(angle=d * t),
    "blink": lambda t, _a, _d: Pose(opacity=np.clip(0.5 + 2 * _swing(2 * t), 0, 1)),
}
CLASSES = tuple(MOTIONS)


def generate(
    root: str | Path,
    *,
    classes: Sequence[str] = CLASSES,
    sources_per_class: int = 8,
    clips_per_source: int = 3,
    coherence: float = 0.0,
    frames: int = 48,
    size: int = 64,
    fps: int = 25,
    seed: int = 0,
) -> tuple[Path, Path]:
    """Write `videos/<class>/<class>_gNN_cMM.mp4` (H.264), `train.csv` and `test.csv` under `root`.

    With a `coherence` above 0 the sources of a class share so much of their looks: then appearance
    is a clue to the class, and videos of one class are alike before any learning. A finished folder
    of an earlier call with the same arguments is left as it is, an interrupted one completed. Other
    arguments replace the earlier videos.

    Returns:
        The training and the test list, which share no source.

    Raises:
        UserError: an argument is wrong, or `root` holds lists or videos that were not made here.
    """
    root = Path(root)
    counts = {"clips_per_source": clips_per_source, "frames": frames, "fps": fps}
    unknown = [name for name in classes if name not in MOTIONS]
    if unknown or not classes or len(set(classes)) < len(classes):
        raise UserError(f"synthetic: classes must be some of {', '.join(CLASSES)}, each once")
    small = [name for name, count in counts.items() if count < 1]
    if small:
        raise UserError(f"synthetic: {shorten(small)} must be at least 1")
    if sources_per_class < 2:
        raise UserError("synthetic: sources_per_class must be at least 2: one is for testing")
    if size < 16 or size % 2:
        raise UserError(f"synthetic: size must be even and at least 16 for H.264, not {size}")

    asked = {"version": VERSION, "classes": list(classes), "size": size, "seed": seed} | counts
    asked |= {"sources_per_class": sources_per_class, "coherence": coherence}
    clips = {}
    for motion in classes:
        for source in range(sources_per_class):
            group = f"{motion}_g{source + 1:02d}"
            for clip in range(clips_per_source):
                row = Row(f"videos/{motion}/{group}_c{clip + 1:02d}.mp4", motion, group)
                clips[row] = (motion, source, clip)

    lists = root / "train.csv", root / "test.csv"
    marker = root / "synthetic.json"
    earlier = json.loads(marker.read_text(encoding="utf-8")) if marker.is_file() else {}
    complete = all((root / row.video).is_file() for row in clips) and all(map(Path.is_file, lists))
    if earlier == {"finished": True, "arguments": asked} and complete:
        return lists
    if earlier.get("arguments") != asked:
        old = [path for path in (*lists, *(root / "videos").glob("**/*")) if path.is_file()]
        if old and not earlier:  # no marker: someone else's files
            raise UserError(
                f"synthetic: {old[0]} was not made by this command; choose an empty folder"
            )
        for path in old:
            path.unlink()
    _mark(marker, finished=False, arguments=asked)
    bar = Bar("rendering videos", total=len(clips))
    for row, (motion, source, clip) in clips.items():
        path = root / row.video
        bar.advance()
        if path.is_file():
            continue
        looks = draw_source(
            numpy_generator(seed, "source", motion, source),
            size=size,
            shared=numpy_generator(seed, "class", motion),
            coherence=coherence,
        )
        generator = numpy_generator(seed, "clip", motion, source, clip)
        picture = render(looks, motion=motion, frames=frames, size=size, generator=generator)
        write_video(path, picture, fps=fps)
    every = min(TEST_EVERY, sources_per_class)
    held_out = {row for row, (_, source, _) in clips.items() if (source + 1) % every == 0}
    write_list(lists[0], [row for row in clips if row not in held_out])
    write_list(lists[1], [row for row in clips if row in held_out])
    _mark(marker, finished=True, arguments=asked)
    return lists


def write_video(path: Path, frames: NDArray[np.uint8], *, fps: int) -> None:
    """Write frames, uint8 [T, H, W, 3] with even H and W, as H.264 in MP4, whole or not at all."""
    options = {"preset": "veryfast", "crf": "18", "g": "24"}
    with replacing(path) as partial, av.open(str(partial), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps, options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.thread_count = 1
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def _mark(marker: Path, *, finished: bool, arguments: dict[str, object]) -> None:
    with replacing(marker) as partial:
        partial.write_text(json.dumps({"finished": finished, "arguments": arguments}, indent=1))


# One clip -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ClipSource:
    """What clips of one group share: appearance, place, pace and phase."""

    background: Array  # [B, B, 3] in [0, 1], wider than the frame by the camera's slack
    shape: str
    colours: Array  # [2, 3]
    stripes: Array  # [3]: two frequencies in radians per radius, one phase
    radius: float  # in frames, as are the centre and the amplitude
    centre: Array  # [2]: x, y
    amplitude: float
    angle: float  # in turns
    direction: int
    period: float  # in video frames
    phase: float  # in periods


def draw_source(
    generator: np.random.Generator,
    *,
    size: int,
    shared: np.random.Generator | None = None,
    coherence: float = 0.0,
) -> ClipSource:
    """A random source for frames of `size` pixels.

    Args:
        generator: draws what is the source's own.
        size: of the frames.
        shared: draws the looks of the source's class.
        coherence: weight of the class in background, colours and stripes, from 0 to 1; also the
            probability that the source has the class's shape.
    """
    own = _draw_own(generator, size=size)
    if shared is None or coherence == 0:
        return own
    typical = _draw_own(shared, size=size)
    mixed = {
        name: (1 - coherence) * getattr(own, name) + coherence * getattr(typical, name)
        for name in ("background", "colours", "stripes")
    }
    shape = typical.shape if generator.random() < coherence else own.shape
    return replace(own, shape=shape, **{k: v.astype(np.float32) for k, v in mixed.items()})


def _draw_own(generator: np.random.Generator, *, size: int) -> ClipSource:
    return ClipSource(
        background=_texture(generator, side=round(size * (1 + 2 * SLACK)) + 4),
        shape=str(generator.choice(sorted(SHAPES))),
        colours=generator.random((2, 3), dtype=np.float32),
        stripes=generator.uniform([-5, -5, 0], [5, 5, 2 * np.pi]).astype(np.float32),
        radius=generator.uniform(0.14, 0.22),
        centre=generator.uniform(0.4, 0.6, size=2).astype(np.float32),
        amplitude=generator.uniform(0.15, 0.28),
        angle=generator.uniform(0, 1),
        direction=int(generator.choice([-1, 1])),
        period=generator.uniform(20, 32),
        phase=generator.uniform(0, 1),
    )


def render(
    source: ClipSource, *, motion: str, frames: int, size: int, generator: np.random.Generator
) -> NDArray[np.uint8]:
    """One clip of a source, from a random time and under a random camera.

    Returns:
        uint8 [T, H, W, 3], RGB; the same to the bit for the same generator.
    """
    time = np.arange(frames, dtype=np.float32) + generator.uniform(0, 8 * source.period)
    pose = MOTIONS[motion](
        (time / source.period + source.phase).astype(np.float32),
        source.amplitude,
        source.direction,
    )
    # The camera is off by whole pixels [T, 2]: a fixed part and a slow shake.
    rest = generator.uniform(-0.8, 0.8, size=2)
    speed, phase = generator.uniform(0.05, 0.2, size=2), generator.uniform(0, 7, size=2)
    shake = 0.15 * np.sin(np.arange(frames)[:, None] * speed + phase)
    camera = np.rint((rest + shake) * SLACK * size).astype(np.int64)
    # The background moves and grows with the object, endlessly. Otherwise motion would be a matter
    # of few pixels, which small encoders are slow to learn.
    place = np.arange(size) - size / 2
    scale = np.broadcast_to(np.float32(pose.scale), frames)
    columns, rows = (
        np.rint(
            place / scale[:, None]
            - np.broadcast_to(np.float32(shift), frames)[:, None] * size
            + camera[:, axis, None]
        ).astype(int)
        % len(source.background)
        for axis, shift in enumerate((pose.x, pose.y))
    )  # [T, size] each
    canvas = source.background[rows[:, :, None], columns[:, None, :]]  # [T, H, W, 3]
    shift = camera.astype(np.float32) / size
    mask, pattern = _object(
        source,
        x=source.centre[0] + pose.x - shift[:, 0],
        y=source.centre[1] + pose.y - shift[:, 1],
        scale=scale,
        angle=np.broadcast_to(np.float32(source.angle + pose.angle), frames),
        size=size,
    )
    mask = mask * np.broadcast_to(np.float32(pose.opacity), frames)[:, None, None]
    first, second = source.colours
    clip = canvas + mask[..., None] * (first + pattern[..., None] * (second - first) - canvas)
    clip *= np.float32(generator.uniform(0.85, 1.15))  # exposure
    clip += generator.standard_normal((frames, size, size, 1), dtype=np.float32) * np.float32(0.02)
    return np.rint(255 * np.clip(clip, 0, 1)).astype(np.uint8)


def _object(
    source: ClipSource, *, x: Array, y: Array, scale: Array, angle: Array, size: int
) -> tuple[Array, Array]:
    """The object's mask with soft edges and its stripes, both in [0, 1], [T, H, W]."""
    pixel = (np.arange(size, dtype=np.float32) + np.float32(0.5)) / size
    radius = (np.float32(source.radius) * scale)[:, None, None]
    across = (pixel - x[:, None])[:, None, :] / radius  # [T, 1, W]
    down = (pixel - y[:, None])[:, :, None] / radius  # [T, H, 1]
    turned = (2 * np.pi * angle).astype(np.float32)[:, None, None]
    u = np.cos(turned) * across + np.sin(turned) * down
    v = np.cos(turned) * down - np.sin(turned) * across
    mask = np.clip((1 - SHAPES[source.shape](u, v)) * radius * size + np.float32(0.5), 0, 1)
    along, over, phase = source.stripes
    return mask, np.float32(0.5) + np.float32(0.5) * np.sin(along * u + over * v + phase)


def _texture(generator: np.random.Generator, *, side: int) -> Array:
    """Noise of four scales, [side, side, 3] in [0, 1]."""
    texture = np.zeros((side, side, 3), dtype=np.float32)
    for cells, weight in ((2, 0.4), (4, 0.3), (8, 0.2), (16, 0.1)):
        knots = np.linspace(0, cells - 1, side, dtype=np.float32)[:, None] - np.arange(cells)
        linear = np.maximum(0, 1 - np.abs(knots)).astype(np.float32)  # [side, cells]
        noise = generator.random((cells, cells, 3), dtype=np.float32)
        smooth = np.einsum("ik,klc,jl->ijc", linear, noise, linear, optimize=True)
        texture += np.float32(weight) * smooth
    return texture
