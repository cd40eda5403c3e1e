import pytest
import torch

from vidcsl.evaluation.statistics import bootstrap_interval


def test_against_the_binomial():
    right = torch.arange(400) < 100
    low, high = bootstrap_interval(right)
    spread = 1.96 * (0.25 * 0.75 / 400) ** 0.5
    assert low == pytest.approx(0.25 - spread, abs=0.004)
    assert high == pytest.approx(0.25 + spread, abs=0.004)
    assert bootstrap_interval(right) == (low, high)  # the seed's, not the machine's
    values = torch.rand(400, generator=torch.Generator().manual_seed(0))
    assert bootstrap_interval(values, seed=0) != bootstrap_interval(values, seed=1)


def test_clips_of_a_video_stand_and_fall_together():
    videos = torch.rand(50, generator=torch.Generator().manual_seed(0)).round()
    as_clips = videos.repeat_interleave(10)
    wide, narrow = bootstrap_interval(videos), bootstrap_interval(as_clips)
    assert wide[1] - wide[0] > 2 * (narrow[1] - narrow[0])
    assert bootstrap_interval(torch.ones(9)) == (1, 1)
