"""Small video files whose frames carry their number, so that a wrong frame is seen at once."""

from pathlib import Path

import av
import numpy as np

from vidcsl.data.lists import Video, VideoList

SHARED = Path(__file__).parents[3] / "shared" / "data"
STEP = 8  # grey levels from one frame to the next: codecs are off by one or two


def write_numbered(
    path, *, frames, codec="libx264", size=(64, 96), options=None, pix_fmt="yuv420p", rotation=0
):
    """A file whose frame k is grey of level STEP * k, its top left corner white."""
    assert STEP * frames < 250
    noise = np.random.default_rng(0).integers(0, 255, (16, size[1] - 16, 3), np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options or {})
        stream.height, stream.width = size
        stream.pix_fmt = pix_fmt
        if rotation:
            stream.set_display_rotation(rotation)
        for k in range(frames):
            pixels = np.full((*size, 3), STEP * k, np.uint8)
            pixels[:16, :16] = 255
            pixels[:16, 16:] = np.roll(noise, 5 * k, axis=1)  # gives each packet some weight
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


def numbers(frames):
    """Which frames these are: uint8 [T, H, W, 3] -> numbers [T]. The centre is always grey."""
    _, height, width, _ = frames.shape
    grey = frames[:, height // 2, width // 2].astype(float).mean(axis=-1) / STEP
    assert (np.abs(grey - grey.round()) < 0.4).all()
    return grey.round().astype(int).tolist()


def video_list(paths):
    """Every video of its own label and group."""
    videos = tuple(Video(path, label=k, group=100 + k) for k, path in enumerate(paths))
    return VideoList(
        videos=videos, classes=tuple(f"class{k}" for k in range(len(paths))), source="made.csv"
    )
