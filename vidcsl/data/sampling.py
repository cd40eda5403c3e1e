"""Which frames of a video make a clip: pure functions of its length and a generator.

In a video shorter than a clip the indices run past its end; `fit_length` brings them back into it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from vidcsl.errors import UserError
from vidcsl.registry import Option, Registry

Indices = NDArray[np.int64]
Draw = Callable[..., Indices]
"""(length, stride=, rng=) -> [V, T], which may run past a short video's end."""

TRAIN_SAMPLING: Registry[Draw] = Registry(
    "DATA.SAMPLING", default="random", meaning="where training clips start"
)
TEST_SAMPLING: Registry[Draw] = Registry(
    "EVALUATE.SAMPLING", default="uniform", meaning="where test clips start"
)
SHORT_VIDEO: Registry[Callable[[Indices, int], Indices]] = Registry(
    "DATA.SHORT_VIDEO", default="loop", meaning="what fills a clip that is longer than its video"
)


@dataclass(frozen=True)
class ViewSampler:
    """The views of a video: the clips that each draw gives, one after the other.

    Attributes:
        draws: samplers of this module whose remaining arguments are `stride` and `rng`.
        stride: step between a clip's frames, in frames of the video; it need not be whole.
        fps: the rate that `stride` refers to; 0: each file's own. Where a file's rate varies, it is
            read as if it had first been converted to an even rate, a multiple of this one.
        short_video: a name in `SHORT_VIDEO`.
    """

    draws: tuple[Draw, ...]
    stride: float
    fps: float = 0.0
    short_video: str = "loop"

    def __call__(
        self,
        length: int,
        fps: float,
        rng: np.random.Generator,
        times: NDArray[np.float64] | None = None,
    ) -> Indices:
        """Frame indices [V, T] in a video.

        Args:
            length: frames of the video.
            fps: its rate, on average; 0: the file has none.
            rng: for the draws.
            times: when each frame is shown, as `Reader.times` has it.
        """
        if times is not None and self.fps > 0:
            finer = max(1, math.ceil(fps / self.fps))  # so that clips may start at most frames
            rate = self.fps * finer
            shown = times[-1] + float(np.median(np.diff(times)))
            even = replace(self, stride=self.stride * finer, fps=0.0)
            moments = even(max(1, round(shown * rate)), rate, rng) / rate
            # What is on the screen then; a thousandth of a second is rounding of time stamps.
            return np.searchsorted(times, moments + 1e-3, side="right") - 1
        known = fps > 0 and self.fps > 0
        stride = self.stride * fps / self.fps if known else self.stride
        clips = np.concatenate([draw(length, stride=stride, rng=rng) for draw in self.draws])
        return fit_length(clips, length, policy=self.short_video)


# Training: random clips ---------------------------------------------------------------------------


@TRAIN_SAMPLING.register("random", "anywhere, independently of each other")
def random_clips(
    length: int, *, frames: int, stride: float, clips: int, rng: np.random.Generator
) -> Indices:
    """Clips with independent, uniform starts; frame 0 in a video shorter than a clip.

    Args:
        length: of the video, in frames.
        frames: of a clip, T.
        stride: step between its frames, in frames of the video; places are rounded down.
        clips: how many, V.
        rng: draws the starts.

    Returns:
        Frame indices [V, T].
    """
    last_start = max(0, length - span_of(frames=frames, stride=stride))
    starts = rng.integers(0, last_start, size=clips, endpoint=True)
    return _clips_at(starts, frames=frames, stride=stride)


@TRAIN_SAMPLING.register(
    "spaced",
    "neighbours DATA.MIN_GAP to DATA.MAX_GAP frames apart",
    MIN_GAP=Option(0, "spaced: fewest frames between the starts of neighbours", minimum=0),
    MAX_GAP=Option(0, "spaced: most frames between them; 0: no limit", minimum=0),
)
def spaced_clips(
    length: int,
    *,
    frames: int,
    stride: float,
    clips: int,
    min_gap: int,
    max_gap: int,
    rng: np.random.Generator,
) -> Indices:
    """Clips whose neighbours in time start at least one gap and at most another apart.

    Several clips as positives of each other (rho in Feichtenhofer et al., 2021), neither the same
    moment nor too far apart. Every choice of gaps that the limits and the length allow is equally
    likely, then every place of the whole group; the order of the clips is random. A video too
    short for `min_gap` gives equal gaps, as large as possible.

    Args:
        length, frames, stride, clips, rng: as for `random_clips`.
        min_gap, max_gap: frames of the video between the starts of neighbours; `max_gap` 0: no
            limit.

    Returns:
        Frame indices [V, T].
    """
    room = max(0, length - span_of(frames=frames, stride=stride))
    count, most = clips - 1, max_gap or room
    if count * min_gap > room:
        gaps = np.full(count, room // max(1, count))
    else:
        free, widest = room - count * min_gap, min(most - min_gap, room - count * min_gap)
        ways = ways_of_gaps(count, free=free, widest=widest)
        gaps = np.empty(count, dtype=np.int64)
        for k in range(count):
            # Gap k leaves `free - gap` for the others, which can share it in so many ways. To draw
            # each gap uniformly instead would favour choices whose first gap is large.
            choices = ways[count - k - 1, free - np.arange(min(widest, free) + 1)]
            gaps[k] = rng.choice(len(choices), p=choices / choices.sum())
            free -= gaps[k]
        gaps += min_gap
    first = rng.integers(0, room - gaps.sum(), endpoint=True)
    starts = first + np.concatenate([[0], gaps.cumsum()]).astype(np.int64)
    return _clips_at(rng.permutation(starts), frames=frames, stride=stride)


@TRAIN_SAMPLING.register("decreasing_interval", "in pairs; the farther apart, the rarer (CVRL)")
def decreasing_interval_clips(
    length: int, *, frames: int, stride: float, rng: np.random.Generator
) -> Indices:
    """Two clips whose distance is the less likely the larger it is (CVRL, Qian et al., 2021).

    With T possible starts the distance k has the density 2 (T - k) / T^2 on [0, T), drawn by
    inverting F(k) = 2k/T - k^2/T^2. Which clip comes first in time is random. In a video shorter
    than the clip both start anywhere (meant for the policy "loop").

    Returns:
        Frame indices [2, T].
    """
    possible = length - span_of(frames=frames, stride=stride) + 1
    if possible < 1:
        starts = rng.integers(0, length, size=2)
    else:
        distance = int(possible * (1 - np.sqrt(1 - rng.random())))  # F inverted
        first = rng.integers(0, possible - distance)
        starts = rng.permutation([first, first + distance])
    return _clips_at(starts, frames=frames, stride=stride)


@TRAIN_SAMPLING.register("segment", "one random frame of each of DATA.FRAMES equal segments (TSN)")
def segment_clips(
    length: int,
    *,
    frames: int,
    clips: int,
    rng: np.random.Generator,
    stride: float = 1.0,  # noqa: ARG001  (the video's length gives the step)
) -> Indices:
    """Clips of one random frame from each of T equal segments of the video (TSN, Wang et al. 2016).

    Returns:
        Frame indices [V, T], rising, inside the video; some repeat in one shorter than T frames.
    """
    return _in_segments(rng.random((clips, frames)), length=length)


# Test: the same clips every time ------------------------------------------------------------------


@TEST_SAMPLING.register("uniform", "evenly from the first to the last possible start")
def uniform_clips(
    length: int,
    *,
    frames: int,
    stride: float,
    clips: int,
    rng: np.random.Generator | None = None,  # noqa: ARG001  (nothing is random)
) -> Indices:
    """Clips evenly spaced from the video's start to its end; a single one is the centre.

    Returns:
        Frame indices [V, T]. In a video shorter than the clip all views start at frame 0.
    """
    last_start = max(0, length - span_of(frames=frames, stride=stride))
    if clips == 1:
        starts = np.array([last_start // 2])
    else:
        starts = np.arange(clips) * last_start // (clips - 1)
    return _clips_at(starts, frames=frames, stride=stride)


@TEST_SAMPLING.register("segment", "one frame of each of DATA.FRAMES equal segments (TSN)")
def uniform_segment_clips(
    length: int,
    *,
    frames: int,
    clips: int,
    rng: np.random.Generator | None = None,  # noqa: ARG001
    stride: float = 1.0,  # noqa: ARG001
) -> Indices:
    """As `segment_clips`, but evenly spread over each segment; a single clip takes its middle."""
    within = np.repeat((np.arange(clips)[:, None] + 0.5) / clips, frames, axis=1)
    return _in_segments(within, length=length)


# Videos shorter than a clip -----------------------------------------------------------------------


def fit_length(indices: Indices, length: int, *, policy: str) -> Indices:
    """Bring indices that run past a short video's end back into it.

    Args:
        indices: frame indices, any shape, not negative.
        length: of the video, in frames.
        policy: a name in `SHORT_VIDEO`.

    Raises:
        UserError: the policy is unknown, or it is "error" and the video is too short.
    """
    if policy not in SHORT_VIDEO:
        raise UserError(f"unknown policy {policy!r} for short videos: one of {list(SHORT_VIDEO)}")
    return SHORT_VIDEO[policy](indices, length)


@SHORT_VIDEO.register("loop", "the video again from its first frame")
def loop(indices: Indices, length: int) -> Indices:
    """Start again at frame 0."""
    return indices % length


@SHORT_VIDEO.register("repeat_last", "its last frame")
def repeat_last(indices: Indices, length: int) -> Indices:
    """Hold the last frame."""
    return np.minimum(indices, length - 1)


@SHORT_VIDEO.register("error", "nothing: the run stops")
def refuse(indices: Indices, length: int) -> Indices:
    """Raise UserError for an index past the end."""
    if indices.max() >= length:
        raise UserError(
            f"a clip reaches frame {indices.max()}, the video has {length} frames: shorten "
            "clips (DATA.FRAMES, DATA.STRIDE) or set DATA.SHORT_VIDEO to loop or repeat_last"
        )
    return indices


# What the samplers share --------------------------------------------------------------------------


def span_of(*, frames: int, stride: float) -> int:
    """Frames of the video from a clip's first frame to its last, both counted."""
    return int((frames - 1) * stride) + 1


def ways_of_gaps(count: int, *, free: int, widest: int) -> NDArray[np.float64]:
    """In how many ways up to `count` gaps of 0 to `widest` sum to at most 0, 1, ... `free`.

    Returns:
        [count + 1, free + 1], each row relative to its largest entry.
    """
    ways = np.ones((count + 1, free + 1))
    for k in range(1, count + 1):
        sums = ways[k - 1].cumsum()
        ways[k] = sums
        ways[k, widest + 1 :] -= sums[: free - widest]
        ways[k] /= ways[k].max()  # only ratios matter, and the counts themselves overflow
    return ways


def _clips_at(starts: Indices, *, frames: int, stride: float) -> Indices:
    steps = (stride * np.arange(frames)).astype(np.int64)
    return starts[:, None] + steps  # [V, T]


def _in_segments(within: NDArray[np.float64], *, length: int) -> Indices:
    """The frames at places [V, T] in [0, 1] of T equal segments."""
    segments = within.shape[1]
    places = (np.arange(segments) + within) * length / segments
    return np.minimum(places.astype(np.int64), length - 1)  # rounding may reach the end
