"""Moving pictures inside a page: frames as a small H.264 film in the page itself."""

import base64
import io
from collections.abc import Sequence
from fractions import Fraction

import av
import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

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
