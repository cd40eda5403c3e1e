"""Which frames of a video make a clip: pure functions of its length and a generator.

In a video shorter than a clip the indices run past its end; `fit_length` says what happens then.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from vidcsl.errors import UserError

Indices = NDArray[np.int64]


def span_of(*, clip_frames: int, stride: int) -> int:
    """Frames of the file from a clip's first frame to its last, both counted."""
    return (clip_frames - 1) * stride + 1


def random_clip(
    num_frames: int, *, clip_frames: int, stride: int, rng: np.random.Generator
) -> Indices:
    """A clip with a uniform start; in a video shorter than the clip it starts at frame 0.

    Args:
        num_frames: length of the video.
        clip_frames: length T of the clip.
        stride: step between its frames, in frames of the video.
        rng: where the start comes from.

    Returns:
        Frame indices [T].
    """
    clips = random_clips(num_frames, clip_frames=clip_frames, stride=stride, clips=1, rng=rng)
    return clips[0]


def random_clips(
    num_frames: int, *, clip_frames: int, stride: int, clips: int, rng: np.random.Generator
) -> Indices:
    """Clips with independent uniform starts, like `random_clip`: indices [V, T]."""
    last_start = max(0, num_frames - span_of(clip_frames=clip_frames, stride=stride))
    starts = rng.integers(0, last_start, size=clips, endpoint=True)
    return _clips_at(starts, clip_frames=clip_frames, stride=stride)


def decreasing_interval_clips(
    num_frames: int, *, clip_frames: int, stride: int, rng: np.random.Generator
) -> Indices:
    """Two clips whose distance is the less likely the larger it is (CVRL, Qian et al., 2021).

    With T possible starts the distance k has the density 2 (T - k) / T^2 on [0, T), drawn by
    inverting F(k) = 2k/T - k^2/T^2. Which clip comes first in time is random. In a video shorter
    than the clip both start anywhere (meant for the policy "loop").

    Returns:
        Frame indices [2, T].
    """
    starts_possible = num_frames - span_of(clip_frames=clip_frames, stride=stride) + 1
    if starts_possible < 1:
        starts = rng.integers(0, num_frames, size=2)
    else:
        distance = int(starts_possible * (1 - np.sqrt(1 - rng.random())))
        first = rng.integers(0, starts_possible - distance)
        starts = rng.permutation([first, first + distance])
    return _clips_at(starts, clip_frames=clip_frames, stride=stride)


def uniform_clips(num_frames: int, *, clip_frames: int, stride: int, clips: int) -> Indices:
    """Test views: clips evenly spaced from the video's start to its end; one view is the centre.

    Returns:
        Frame indices [V, T]. In a video shorter than the clip all views start at frame 0.
    """
    last_start = max(0, num_frames - span_of(clip_frames=clip_frames, stride=stride))
    if clips == 1:
        starts = np.array([last_start // 2])
    else:
        starts = np.arange(clips) * last_start // (clips - 1)
    return _clips_at(starts, clip_frames=clip_frames, stride=stride)


def fit_length(indices: Indices, num_frames: int, *, policy: str) -> Indices:
    """Bring indices that run past a short video's end back into it.

    Args:
        indices: frame indices, any shape, not negative.
        num_frames: length of the video.
        policy: "loop" starts again at frame 0, "repeat_last" holds the last frame, "error" raises.

    Raises:
        UserError: the policy is unknown, or it is "error" and the video is too short.
    """
    if policy not in SHORT_VIDEO:
        raise UserError(f"unknown policy {policy!r} for short videos: one of {list(SHORT_VIDEO)}")
    return SHORT_VIDEO[policy](indices, num_frames)


def _loop(indices: Indices, num_frames: int) -> Indices:
    return indices % num_frames


def _repeat_last(indices: Indices, num_frames: int) -> Indices:
    return np.minimum(indices, num_frames - 1)


def _error(indices: Indices, num_frames: int) -> Indices:
    if indices.max() >= num_frames:
        raise UserError(
            f"a clip reaches frame {indices.max()}, the video has {num_frames} frames: shorten "
            "clips (DATA.FRAMES, DATA.STRIDE) or set DATA.SHORT_VIDEO to loop or repeat_last"
        )
    return indices


SHORT_VIDEO: dict[str, Callable[[Indices, int], Indices]] = {
    "loop": _loop,
    "repeat_last": _repeat_last,
    "error": _error,
}


def _clips_at(starts: NDArray[np.int64], *, clip_frames: int, stride: int) -> Indices:
    return starts[:, None] + stride * np.arange(clip_frames, dtype=np.int64)  # [V, T]
