from functools import partial
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vidcsl.data.sampling import (
    SHORT_VIDEO,
    ViewSampler,
    decreasing_interval_clips,
    fit_length,
    random_clips,
    segment_clips,
    spaced_clips,
    span_of,
    uniform_clips,
    uniform_segment_clips,
    ways_of_gaps,
)
from vidcsl.errors import UserError

lengths = st.integers(1, 200)
frames = st.integers(1, 20)
strides = st.integers(1, 8)
views = st.integers(1, 6)
seeds = st.integers(0, 2**32)


def check_clips(clips, length, *, frames, stride):
    assert clips.dtype == np.int64
    assert clips.shape[-1] == frames
    assert (np.diff(clips) == stride).all()
    assert clips.min() >= 0
    if length >= span_of(frames=frames, stride=stride):
        assert clips.max() < length


@given(lengths, frames, strides, views, seeds)
def test_every_sampler_gives_strided_clips_inside_the_video(n, frames, stride, clips, seed):
    shape = {"frames": frames, "stride": stride}
    rng = np.random.default_rng(seed)
    several = random_clips(n, clips=clips, rng=rng, **shape)
    uniform = uniform_clips(n, clips=clips, **shape)
    pair = decreasing_interval_clips(n, rng=rng, **shape)
    assert several.shape == uniform.shape == (clips, frames)
    assert pair.shape == (2, frames)
    for indices in (several, uniform, pair):
        check_clips(indices, n, **shape)


@given(lengths, frames, strides, views, seeds)
def test_the_generator_alone_decides(n, frames, stride, clips, seed):
    shape = {"frames": frames, "stride": stride}
    for sampler in (
        lambda rng: random_clips(n, clips=clips, rng=rng, **shape),
        lambda rng: decreasing_interval_clips(n, rng=rng, **shape),
    ):
        once, again = (sampler(np.random.default_rng(seed)) for _ in range(2))
        np.testing.assert_array_equal(once, again)


def test_random_starts_are_uniform_and_independent():
    starts = random_clips(17, frames=4, stride=2, clips=20_000, rng=np.random.default_rng(0))[:, 0]
    counts = np.bincount(starts, minlength=11)
    assert len(counts) == 11  # 17 - 7 + 1 possible starts, the last included
    expected = 20_000 / 11
    assert (np.abs(counts - expected) < 5 * np.sqrt(expected)).all()
    assert abs(np.corrcoef(starts[:-1], starts[1:])[0, 1]) < 0.03


def test_interval_follows_the_published_distribution():
    rng = np.random.default_rng(0)
    pairs = np.array(
        [decreasing_interval_clips(23, frames=4, stride=1, rng=rng)[:, 0] for _ in range(8000)]
    )
    possible = 20
    k = np.arange(possible + 1)
    cdf = 2 * k / possible - k**2 / possible**2
    counts = np.bincount(np.abs(pairs[:, 0] - pairs[:, 1]), minlength=possible)
    expected = 8000 * np.diff(cdf)
    assert (np.abs(counts - expected) < 5 * np.sqrt(expected) + 1).all()
    swapped = (pairs[:, 0] > pairs[:, 1]).sum() / (pairs[:, 0] != pairs[:, 1]).sum()
    assert abs(swapped - 0.5) < 0.03
    # Given the distance, every first start that leaves room for it is equally likely.
    first = pairs.min(axis=1)[np.abs(pairs[:, 0] - pairs[:, 1]) == 0]
    assert set(first) == set(range(possible))


def test_short_video_pair_starts_anywhere():
    rng = np.random.default_rng(0)
    pairs = [decreasing_interval_clips(5, frames=8, stride=2, rng=rng) for _ in range(200)]
    assert {int(start) for pair in pairs for start in pair[:, 0]} == set(range(5))


@given(lengths, frames, strides, st.integers(2, 6))
def test_uniform_views_reach_both_ends_evenly(n, frames, stride, clips):
    starts = uniform_clips(n, frames=frames, stride=stride, clips=clips)[:, 0]
    last = max(0, n - span_of(frames=frames, stride=stride))
    assert starts[0] == 0
    assert starts[-1] == last
    assert np.ptp(np.diff(starts)) <= 1


@given(lengths, frames, strides)
def test_one_uniform_view_is_the_centre(n, frames, stride):
    clip = uniform_clips(n, frames=frames, stride=stride, clips=1)[0]
    before, after = clip[0], n - 1 - clip[-1]
    assert after - before in (0, 1) or (after < 0 and before == 0)


@given(st.lists(st.integers(0, 60), min_size=1, max_size=30), st.integers(1, 40))
def test_fit_length_against_a_naive_walk(indices, n):
    loop = [i - n * (i // n) for i in indices]
    last = [i if i < n else n - 1 for i in indices]
    given_ = np.array(indices)
    assert fit_length(given_, n, policy="loop").tolist() == loop
    assert fit_length(given_, n, policy="repeat_last").tolist() == last


@given(lengths, st.sampled_from(sorted(SHORT_VIDEO)))
def test_fit_length_leaves_long_enough_videos_alone(n, policy):
    indices = np.arange(n).reshape(1, -1)
    np.testing.assert_array_equal(fit_length(indices, n, policy=policy), indices)


def test_fit_length_refuses():
    with pytest.raises(UserError, match=r"frame 5, the video has 5 frames.*DATA\.SHORT_VIDEO"):
        fit_length(np.arange(6), 5, policy="error")
    with pytest.raises(UserError, match="unknown policy 'wrap'"):
        fit_length(np.arange(6), 5, policy="wrap")


@given(lengths, frames, st.floats(0.2, 8), views, seeds)
def test_a_step_need_not_be_whole(n, frames, stride, clips, seed):
    shape = {"frames": frames, "stride": stride}
    several = random_clips(n, clips=clips, rng=np.random.default_rng(seed), **shape)
    steps = several - several[:, :1]
    assert (steps == [int(stride * k) for k in range(frames)]).all()
    if n >= span_of(**shape):
        assert several.max() < n
        assert uniform_clips(n, clips=2, **shape).max() == n - 1


gaps = st.tuples(st.integers(0, 40), st.integers(0, 40)).map(sorted)


@given(lengths, frames, strides, st.integers(1, 5), gaps, seeds)
def test_spaced_clips_keep_their_gaps(n, frames, stride, clips, limits, seed):
    shape = {"frames": frames, "stride": stride}
    least, most = limits
    found = spaced_clips(
        n, clips=clips, min_gap=least, max_gap=most, rng=np.random.default_rng(seed), **shape
    )
    assert found.shape == (clips, frames)
    check_clips(found, n, **shape)
    distances = np.diff(np.sort(found[:, 0]))
    room = max(0, n - span_of(**shape))
    if (clips - 1) * least <= room:
        assert (distances >= least).all()
        assert (distances <= (most or room)).all()
    else:
        assert (distances == room // (clips - 1)).all()  # as far apart as the video allows


def test_spaced_clips_take_every_choice_of_gaps_alike():
    """Room for starts 0 to 6; three clips, gaps 1 to 4: counted against the list of all pairs."""
    rng = np.random.default_rng(0)
    options = {"frames": 2, "stride": 1, "clips": 3, "min_gap": 1, "max_gap": 4}
    drawn = [spaced_clips(8, rng=rng, **options)[:, 0] for _ in range(12_000)]
    pairs = [tuple(np.diff(np.sort(starts)).tolist()) for starts in drawn]
    possible = [(a, b) for a in range(1, 5) for b in range(1, 5) if a + b <= 6]
    assert set(pairs) == set(possible)
    expected = len(drawn) / len(possible)
    counts = np.array([pairs.count(pair) for pair in possible])
    assert (np.abs(counts - expected) < 5 * np.sqrt(expected)).all()
    firsts = [int(np.sort(s)[0]) for s, p in zip(drawn, pairs, strict=True) if p == (1, 1)]
    assert set(firsts) == set(range(5))
    assert len({tuple(s.argsort().tolist()) for s in drawn}) == 6  # any clip may come first


@pytest.mark.parametrize(("count", "free", "widest"), [(2, 9, 2), (3, 7, 3), (3, 4, 4), (1, 6, 0)])
def testways_of_gaps_against_a_list_of_all(count, free, widest):
    ways = ways_of_gaps(count, free=free, widest=widest)
    for k in range(1, count + 1):
        sums = [sum(gaps) for gaps in product(range(widest + 1), repeat=k)]
        listed = np.array([sum(total <= room for total in sums) for room in range(free + 1)])
        np.testing.assert_allclose(ways[k], listed / listed.max())


@given(lengths, frames, views, seeds)
def test_segments_each_give_one_frame(n, frames, clips, seed):
    rng = np.random.default_rng(seed)
    for found in (
        uniform_segment_clips(n, frames=frames, clips=clips),
        segment_clips(n, frames=frames, clips=clips, rng=rng),
    ):
        assert found.shape == (clips, frames)
        assert found.dtype == np.int64
        for k in range(frames):
            first, end = k * n / frames, (k + 1) * n / frames
            assert (found[:, k] >= int(first)).all()
            assert (found[:, k] <= end).all()
        assert found.max() < n


def test_segments_without_chance_are_their_middles():
    assert uniform_segment_clips(40, frames=4, clips=1).tolist() == [[5, 15, 25, 35]]
    assert uniform_segment_clips(40, frames=2, clips=2).tolist() == [[5, 25], [15, 35]]


def test_a_step_at_another_rate():
    def step(fps, wanted):
        sampler = ViewSampler((partial(uniform_clips, frames=2, clips=1),), stride=8, fps=wanted)
        first, last = sampler(100, fps, np.random.default_rng(0))[0]
        return last - first

    assert step(30, 15) == 16
    assert step(10, 15) == int(8 * 10 / 15)
    assert step(0, 15) == step(30, 0) == 8


def test_a_view_sampler_joins_its_draws_and_fits_them_to_the_video():
    draws = (
        partial(random_clips, frames=4, clips=2),
        partial(uniform_segment_clips, frames=4, clips=1),
    )
    clips = ViewSampler(draws, stride=3)(5, 25.0, np.random.default_rng(0))
    assert clips.tolist() == [[0, 3, 1, 4], [0, 3, 1, 4], [0, 1, 3, 4]]
