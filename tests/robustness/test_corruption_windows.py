"""Corruptions in the published order: the video at full rate first, then the clip's frames."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from tests.robustness.test_corruptions import moving_clips
from vidcsl.augment.pipeline import EvalCrop
from vidcsl.robustness.corruption_table import corrupted, predict
from vidcsl.robustness.corruptions import corrupt
from vidcsl.robustness.corruptions.suites import SUITES
from vidcsl.robustness.corruptions.windows import Window, acts_over_time
from vidcsl.robustness.targets import Clips

SIZE, SHOWN = 96, torch.arange(0, 29, 4)  # 8 frames of stride 4


def batch_of_videos(count=2, rate=25.0):
    """Clips with the videos that they are of."""
    videos = torch.cat([moving_clips(count=count, height=SIZE, width=SIZE) for _ in range(2)], 2)
    videos = (255 * videos[:, :, :29]).round().byte()
    crop = EvalCrop(size=SIZE)
    windows = [Window(video, SHOWN, rate, crop) for video in videos]
    clips = videos[:, :, SHOWN].float() / 255
    return Clips(clips, torch.zeros(count).long(), range(count), range(count), windows=windows)


def change(found, batch):
    return float(255 * (found - batch.clips).abs().mean())


@pytest.mark.parametrize(
    ("name", "severity", "at_most"),
    [("C/frame_rate", 1, 0.7), ("C/motion_blur", 1, 0.8), ("P/freezing", 3, 0.9)],
)
def test_at_full_rate_time_does_less_harm_than_on_every_fourth_frame(name, severity, at_most):
    """On real video, in grey levels: 0.6 and 4.1, 6.1 and 11.1, 2.3 and 4.1."""
    batch = batch_of_videos()
    ours = change(corrupted(batch, name, severity).clips, batch)
    on_clips = change(corrupt(batch.clips, name, severity=severity), batch)
    assert 0 < ours <= at_most * on_clips


def test_frames_are_lost_at_the_rate_of_the_video():
    slow, fast = batch_of_videos(rate=12.0), batch_of_videos(rate=30.0)
    name, severity = "C/frame_rate", 2  # 16 a second
    assert torch.equal(corrupted(slow, name, severity).clips, slow.clips)
    assert not torch.equal(corrupted(fast, name, severity).clips, fast.clips)


def test_the_order_is_damage_then_choice():
    batch = batch_of_videos(1)
    (window,) = batch.windows
    whole = corrupt(window.frames[None].float() / 255, "P/jumbling", severity=3, seeds=[0])
    found = corrupted(batch, "P/jumbling", 3)
    torch.testing.assert_close(found.clips, whole[:, :, SHOWN])
    assert found.repeated.tolist() == [0]


def test_corruptions_of_single_frames_and_tensors_keep_the_clip():
    batch = batch_of_videos(1)
    for name in ("P/jpeg", "C/fog", "V/exposure_flicker"):
        assert torch.equal(
            corrupted(batch, name, 3).clips, corrupt(batch.clips, name, severity=3, seeds=[0])
        )
    alone = replace(batch, windows=None)
    assert torch.equal(
        corrupted(alone, "P/jumbling", 3).clips,
        corrupt(batch.clips, "P/jumbling", severity=3, seeds=[0]),
    )
    assert torch.equal(corrupted(batch, "", 0).clips, batch.clips)


def test_what_acts_over_time():
    over_time = {f"{suite}/{name}" for suite in SUITES for name in SUITES[suite]}
    over_time = {name for name in over_time if acts_over_time(name)}
    assert {"P/sampling", "P/mpeg2", "C/motion_blur", "C/frame_rate", "V/frame_drop"} <= over_time
    assert {"C/bit_error", "C/packet_loss", "C/h264", "C/h265", "P/freezing"} <= over_time
    assert not {"P/motion_blur", "P/jpeg", "C/rain", "V/camera_shake"} & over_time


def test_predictions_are_of_the_clip_in_its_own_size():
    seen = []

    class Model(nn.Module):
        def forward(self, clips):
            seen.append(clips.shape)
            return clips.mean((2, 3, 4))

    batch = batch_of_videos(2)
    for name in ("C/packet_loss", "C/frame_rate"):
        rows = predict(Model(), batch, name, 5)
        assert [len(row) for row in rows] == [4, 4]
    assert set(seen) == {(2, 3, 8, SIZE, SIZE)}
