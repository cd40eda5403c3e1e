"""A data set to learn from at once: small labelled videos, drawn and written as real H.264 files.

The class is the motion (see `motions.py`). Several clips are cut from each source, at other times
and under another camera; they share their group, so that false negatives are known to the list.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from vidcsl.data.lists import Row, replacing, shorten, write_list
from vidcsl.data.motions import MOTIONS, draw_source, render
from vidcsl.engine.progress import Bar
from vidcsl.errors import UserError
from vidcsl.seeding import numpy_generator

VERSION = 1  # part of the marker: files of another version of the drawing are made anew
TEST_EVERY = 4  # each fourth source is for testing
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

    Where `coherence` is above 0, the sources of a class share so much of their looks: then the
    classes can be told by appearance too, and videos of one class are alike before any learning.
    What an earlier call with the same arguments has written is kept: a finished folder is left as
    it is, an interrupted one completed. Other arguments replace the earlier videos.

    Returns:
        The training and the test list, which share no source.

    Raises:
        UserError: an argument is wrong, or `root` holds lists or videos that were not made here.
    """
    root = Path(root)
    counts = {"clips_per_source": clips_per_source, "frames": frames, "fps": fps}
    _check(classes, counts=counts, sources_per_class=sources_per_class, size=size)
    asked = {"version": VERSION, "classes": list(classes), "size": size, "seed": seed} | counts
    asked |= {"sources_per_class": sources_per_class, "coherence": coherence}
    clips = {
        _row(motion, source, clip): (motion, source, clip)
        for motion in classes
        for source in range(sources_per_class)
        for clip in range(clips_per_source)
    }
    lists = root / "train.csv", root / "test.csv"
    marker = root / "synthetic.json"
    earlier = json.loads(marker.read_text(encoding="utf-8")) if marker.is_file() else {}
    complete = all((root / row.video).is_file() for row in clips) and all(map(Path.is_file, lists))
    if earlier == {"finished": True, "arguments": asked} and complete:
        return lists
    if earlier.get("arguments") != asked:
        _clear([*lists, *(root / "videos").glob("**/*")], ours=bool(earlier))
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
    for path, is_test in zip(lists, (False, True), strict=True):
        write_list(
            path,
            [row for row, key in clips.items() if _is_test(key[1], sources_per_class) is is_test],
        )
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


def _row(motion: str, source: int, clip: int) -> Row:
    group = f"{motion}_g{source + 1:02d}"
    return Row(f"videos/{motion}/{group}_c{clip + 1:02d}.mp4", motion, group)


def _is_test(source: int, sources: int) -> bool:
    """Each fourth source, and the last of fewer."""
    return (source + 1) % min(TEST_EVERY, sources) == 0


def _check(
    classes: Sequence[str], *, counts: dict[str, int], sources_per_class: int, size: int
) -> None:
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


def _clear(paths: Sequence[Path], *, ours: bool) -> None:
    """Remove what other arguments made; refuse to touch files of a folder without the marker."""
    files = [path for path in paths if path.is_file()]
    if files and not ours:
        raise UserError(f"synthetic: {files[0]} was not made here; choose an empty folder")
    for path in files:
        path.unlink()


def _mark(marker: Path, *, finished: bool, arguments: dict[str, object]) -> None:
    with replacing(marker) as partial:
        partial.write_text(json.dumps({"finished": finished, "arguments": arguments}, indent=1))
