"""Which frames of a video make a clip: pure functions of its length and a generator.

In a video shorter than a clip the indices run past its end; `fit_length` says what happens then.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from vidcsl.errors import UserError

Indices = NDArray[np.int64]


def span_of(*, clip_frames: int, stride: float) -> int:
    """Frames of the file from a clip's first frame to its last, both counted."""
    return int((clip_frames - 1) * stride) + 1


def random_clip(
    num_frames: int, *, clip_frames: int, stride: float, rng: np.random.Generator
) -> Indices:
    """A clip with a uniform start; in a video shorter than the clip it starts at frame 0.

    Args:
        num_frames: length of the video.
        clip_frames: length T of the clip.
        stride: step between its frames, in frames of the video; places are rounded down.
        rng: where the start comes from.

    Returns:
        Frame indices [T].
    """
    clips = random_clips(num_frames, clip_frames=clip_frames, stride=stride, clips=1, rng=rng)
    return clips[0]


def random_clips(
    num_frames: int, *, clip_frames: int, stride: float, clips: int, rng: np.random.Generator
) -> Indices:
    """Clips with independent uniform starts, like `random_clip`: indices [V, T]."""
    last_start = max(0, num_frames - span_of(clip_frames=clip_frames, stride=stride))
    starts = rng.integers(0, last_start, size=clips, endpoint=True)
    return _clips_at(starts, clip_frames=clip_frames, stride=stride)


def decreasing_interval_clips(
    num_frames: int, *, clip_frames: int, stride: float, rng: np.random.Generator
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


def spaced_clips(
    num_frames: int,
    *,
    clip_frames: int,
    stride: float,
    clips: int,
    min_gap: int,
    max_gap: int,
    rng: np.random.Generator,
) -> Indices:
    """Clips of one video whose neighbours in time start between two gaps apart.

    Several clips as positives of each other (rho in Feichtenhofer et al., 2021), neither the same
    moment nor too far apart. Every choice of gaps that the limits and the video's length allow is
    equally likely, then every place of the whole group; which clip is where is random. In a video
    too short for `min_gap`, the gaps are as large as can be, all alike.

    Args:
        num_frames, clip_frames, stride, rng: as for `random_clip`.
        clips: how many, V.
        min_gap, max_gap: frames of the video between the starts of neighbours; 0 for `max_gap`
            leaves it open.

    Returns:
        Frame indices [V, T].
    """
    room = max(0, num_frames - span_of(clip_frames=clip_frames, stride=stride))
    gaps = _random_gaps(room, count=clips - 1, least=min_gap, most=max_gap or room, rng=rng)
    first = rng.integers(0, room - gaps.sum(), endpoint=True)
    starts = first + np.concatenate([[0], gaps.cumsum()]).astype(np.int64)
    return _clips_at(rng.permutation(starts), clip_frames=clip_frames, stride=stride)


def _random_gaps(
    room: int, *, count: int, least: int, most: int, rng: np.random.Generator
) -> Indices:
    """Uniform among the gaps in [least, most] whose sum is at most `room`."""
    if count * least > room:
        return np.full(count, room // max(1, count))
    free, widest = room - count * least, min(most - least, room - count * least)
    ways = _ways_of_gaps(count, free=free, widest=widest)
    gaps = np.empty(count, dtype=np.int64)
    for k in range(count):
        # The gap k leaves `free - gap` for the others, in that many ways.
        choices = ways[count - k - 1, free - np.arange(min(widest, free) + 1)]
        gaps[k] = rng.choice(len(choices), p=choices / choices.sum())
        free -= gaps[k]
    return gaps + least


def _ways_of_gaps(count: int, *, free: int, widest: int) -> NDArray[np.float64]:
    """In how many ways up to `count` gaps of 0 to `widest` sum to at most 0, 1, ... `free`."""
    ways = np.ones((count + 1, free + 1))
    for k in range(1, count + 1):
        sums = ways[k - 1].cumsum()
        ways[k] = sums
        ways[k, widest + 1 :] -= sums[: free - widest]
        ways[k] /= ways[k].max()  # only their shares matter, and the counts overflow
    return ways


def segment_clips(
    num_frames: int, *, clip_frames: int, clips: int, rng: np.random.Generator | None = None
) -> Indices:
    """Clips of one frame of each of T equal segments of the video (TSN, Wang et al. 2016).

    Args:
        num_frames: length of the video.
        clip_frames: how many segments, T.
        clips: how many, V.
        rng: draws the frames within the segments; without it the views are evenly spread over them,
            a single one in their middle.

    Returns:
        Frame indices [V, T], rising, inside the video; in one shorter than T frames some repeat.
    """
    if rng is None:
        within = np.repeat((np.arange(clips)[:, None] + 0.5) / clips, clip_frames, axis=1)
    else:
        within = rng.random((clips, clip_frames))
    places = (np.arange(clip_frames) + within) * num_frames / clip_frames
    return np.minimum(places.astype(np.int64), num_frames - 1)


def dense_stride(*, clip_frames: int, window: int) -> float:
    """The step that spreads a clip over `window` frames in a row (TSM, Lin et al. 2019)."""
    return window / clip_frames


def stride_at(stride: float, *, fps: float, wanted_fps: float) -> float:
    """A step in frames of a file of `fps` that is `stride` frames at `wanted_fps`.

    Either rate may be 0: a file that does not say its own, or no wish. The step then stays.
    """
    return stride * fps / wanted_fps if fps > 0 and wanted_fps > 0 else stride


def uniform_clips(num_frames: int, *, clip_frames: int, stride: float, clips: int) -> Indices:
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


def _clips_at(starts: NDArray[np.int64], *, clip_frames: int, stride: float) -> Indices:
    steps = (stride * np.arange(clip_frames)).astype(np.int64)
    return starts[:, None] + steps  # [V, T]
