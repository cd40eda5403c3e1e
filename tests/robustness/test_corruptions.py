from pathlib import Path

import av
import numpy as np
import pytest
import torch

from vidcsl.errors import UserError
from vidcsl.robustness.corruptions import SCORED, SEVERITIES, SUITES, corrupt, find, names
from vidcsl.robustness.corruptions.codec import transcode
from vidcsl.robustness.corruptions.suites import markdown

MINI = Path(__file__).parents[3] / "shared" / "data" / "ucf101_10_mini" / "videos"

# What PSNR does not rank, and why.
NOT_MONOTONE = {
    "P/static_rotation": "beyond 30 degrees nothing is aligned any more",
    "P/reverse_sampling": "the fewer frames are left, the less there is to reverse",
    "P/jumbling": "the published segments shrink",
    "P/box_jumbling": "a shuffle is a shuffle",
    "C/fog": "4 is no thicker than 3, only rougher",
    "C/saturate": "1 and 2 take colour away, 3 to 5 add it",
    "C/bit_error": "which byte is hit matters more than how many are",
    "C/packet_loss": "which packet is lost matters more than how many are",
    "V/nal_loss": "which slice is lost matters more than how many are",
}
# In a clip as small as the one made here chance often strikes nowhere.
RARE = {"C/bit_error", "C/packet_loss", "V/nal_loss"}
DETERMINISTIC = {
    *("P/defocus_blur", "P/zoom_blur", "P/jpeg", "P/mpeg2", "P/mpeg4", "P/static_rotation"),
    *("P/sampling", "P/reverse_sampling", "C/motion_blur", "C/contrast", "C/brightness"),
    *("C/saturate", "C/h264", "C/h265", "C/frame_rate", "C/motion_blur_ssv2"),
    *("C/frame_rate_ssv2", "C/h264_bit_rate", "C/h265_bit_rate", "V/banding", "V/pixelate"),
}
CASES = [pytest.param(name, s, id=f"{name}-{s}") for name in names() for s in SEVERITIES]


def moving_clips(
    count: int = 2, length: int = 16, height: int = 39, width: int = 46
) -> torch.Tensor:
    t, y, x = torch.meshgrid(
        torch.arange(length), torch.arange(height), torch.arange(width), indexing="ij"
    )
    waves = [
        torch.stack([(x + (c + 1) * t + 5 * n) / 6.0 + y / (9.0 + c) for c in range(3)]).sin()
        for n in range(count)
    ]
    return torch.stack(waves) * 0.45 + 0.5


def psnr(first: torch.Tensor, second: torch.Tensor) -> float:
    return float(-10 * (first - second).square().mean().clamp(min=1e-12).log10())


@pytest.fixture(scope="module")
def real_clip() -> torch.Tensor:
    if not MINI.is_dir():
        pytest.skip(f"real videos not found in {MINI}")
    path = sorted(MINI.glob("*/*.mp4"))[120]
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    clip = torch.from_numpy(np.stack(frames[:32:2])).permute(3, 0, 1, 2)[None]
    assert clip.shape[:3] == (1, 3, 16)
    return clip.float() / 255


@pytest.mark.parametrize(("name", "severity"), CASES)
def test_every_corruption_keeps_shape_range_and_seeds(name, severity):
    clips = moving_clips()
    before = clips.clone()
    corrupted = corrupt(clips, name, severity=severity, seeds=[7, 8])
    assert corrupted.shape == clips.shape
    assert corrupted.dtype == torch.float32
    assert corrupted.min() >= 0
    assert corrupted.max() <= 1
    assert torch.equal(clips, before)
    assert not torch.equal(corrupted, clips)
    alone = corrupt(clips[1:], name, severity=severity, seeds=[8])
    torch.testing.assert_close(alone[0], corrupted[1], rtol=0, atol=1e-6)
    other = corrupt(clips[1:], name, severity=severity, seeds=[9])
    if name not in RARE:
        assert torch.equal(other, alone) == (name in DETERMINISTIC)


@pytest.mark.parametrize("name", names())
def test_same_call_same_bits_and_severity_0_is_identity(name):
    clips = moving_clips(count=1)
    once, again = (corrupt(clips, name, severity=3, seeds=[5]) for _ in range(2))
    assert torch.equal(once, again)
    assert torch.equal(corrupt(clips, name, severity=0, seeds=[5]), clips)


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 5, 2), (3, 70, 33)])
def test_short_and_tiny_clips_keep_their_shape(name, shape):
    clips = torch.rand(1, 3, *shape, generator=torch.Generator().manual_seed(0))
    corrupted = corrupt(clips, name, severity=5, seeds=[1])
    assert corrupted.shape == clips.shape
    assert corrupted.isfinite().all()


@pytest.mark.parametrize("name", [n for n in names() if n not in NOT_MONOTONE])
def test_a_higher_severity_does_more_harm(name, real_clip):
    harm = [
        -psnr(corrupt(real_clip, name, severity=s, seeds=[3]), real_clip) for s in (0, *SEVERITIES)
    ]
    assert harm == sorted(harm)
    # Equal steps are a table that does nothing; with 16 frames two may coincide (32 and 16).
    assert len(set(harm)) >= 5


@pytest.mark.parametrize("name", sorted(NOT_MONOTONE))
def test_what_psnr_does_not_rank_still_does_harm(name, real_clip):
    for severity in SEVERITIES:
        assert psnr(corrupt(real_clip, name, severity=severity, seeds=[3]), real_clip) < 45


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", names())
def test_gpu_agrees_with_cpu(name):
    clips = moving_clips()
    for severity in (1, 5):
        expected = corrupt(clips, name, severity=severity, seeds=[7, 8])
        actual = corrupt(clips.cuda(), name, severity=severity, seeds=[7, 8])
        assert actual.is_cuda
        torch.testing.assert_close(actual.cpu(), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "name", ["P/mpeg2", "P/mpeg4", "C/h264", "C/h265", "C/h265_bit_rate", "V/nal_loss"]
)
@pytest.mark.parametrize("size", [(36, 34), (112, 80), (160, 160)])
def test_codecs_do_not_remember_what_they_coded_before(name, size):
    clips = moving_clips(count=4, height=size[0], width=size[1])
    together = corrupt(clips, name, severity=4, seeds=[0] * 4)
    for i in (2, 0, 3, 1, 0):
        alone = corrupt(clips[[i]], name, severity=4, seeds=[0])
        assert torch.equal(alone[0], together[i])


def test_global_random_state_is_left_alone():
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    for name in names():
        corrupt(moving_clips(count=1), name, severity=2, seeds=[5])
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)


def test_bare_names_mean_suite_p_first():
    assert find("shot_noise")[0] == "P/shot_noise"
    assert find("C/shot_noise")[0] == "C/shot_noise"
    assert find("h264")[0] == "C/h264"
    clips = moving_clips(count=1)
    bare, full = (corrupt(clips, n, severity=1, seeds=[5]) for n in ("jpeg", "P/jpeg"))
    assert torch.equal(bare, full)


def test_every_row_has_five_severities_and_suite_p_is_whole():
    for rows in SUITES.values():
        for row in rows.values():
            assert all(len(values) == 5 for values in row.parameters.values())
    assert SCORED == {"P": 18, "C": 12, "V": 9}


@pytest.mark.parametrize(
    ("name", "severity", "message"),
    [
        ("gausian_noise", 1, "unknown corruption 'gausian_noise'; did you mean 'gaussian_noise'?"),
        ("C/jpg", 1, "did you mean"),
        ("???", 1, "known: P/gaussian_noise"),
        ("jpeg", 6, "severity of P/jpeg is 6; it must be one of 0 to 5"),
        ("jpeg", -1, "one of 0 to 5"),
        ("jpeg", 2.5, "one of 0 to 5"),
        ("jpeg", "3", "one of 0 to 5"),
    ],
)
def test_user_errors_say_what_to_do(name, severity, message):
    with pytest.raises(UserError) as caught:
        corrupt(moving_clips(count=1), name, severity=severity, seeds=[0])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda clips: clips.double(), "need float32 clips [N, 3, T, H, W], not torch.float64"),
        (lambda clips: clips.transpose(1, 2), "need float32 clips [N, 3, T, H, W]"),
        (lambda clips: clips[0], "need float32 clips [N, 3, T, H, W]"),
        (lambda clips: clips.numpy(), "need a tensor of clips, not ndarray"),
        (lambda clips: clips * 255, "need clips in [0, 1]"),
        (lambda clips: (clips - 0.45) / 0.225, "need clips in [0, 1]"),
        (lambda clips: clips * torch.nan, "need clips in [0, 1], not nan to nan"),
    ],
)
@pytest.mark.parametrize("severity", [0, 1])
def test_clips_of_another_shape_type_or_range_are_refused_in_one_line(change, message, severity):
    clips = change(moving_clips(count=2))
    with pytest.raises(UserError) as caught:
        corrupt(clips, "contrast", severity=severity, seeds=[0, 1])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_clips_that_leave_the_range_by_a_rounding_error_are_accepted():
    clips = moving_clips(count=1).clamp_(0, 1)
    clips[0, 0, 0, 0, 0] = 1 + 1e-6
    assert corrupt(clips, "C/contrast", severity=1).max() <= 1


def test_a_wrong_number_of_seeds_is_refused():
    with pytest.raises(UserError, match="2 clips need as many seeds, not 1"):
        corrupt(moving_clips(count=2), "jpeg", severity=1, seeds=[0])


def test_seeds_default_to_the_position_in_the_batch():
    clips = moving_clips(count=2)
    expected = corrupt(clips, "P/gaussian_noise", severity=1, seeds=[0, 1])
    assert torch.equal(corrupt(clips, "P/gaussian_noise", severity=1), expected)


@pytest.mark.parametrize("severity", [3.0, np.int64(3), np.float32(3)])
def test_a_whole_number_of_any_type_is_a_severity(severity):
    clips = moving_clips(count=1)
    expected = corrupt(clips, "P/gaussian_noise", severity=3)
    assert torch.equal(corrupt(clips, "P/gaussian_noise", severity=severity), expected)


@pytest.mark.parametrize("name", names())
def test_another_default_dtype_changes_nothing(name):
    clips = moving_clips(count=1, length=6)
    expected = corrupt(clips, name, severity=4)
    try:
        torch.set_default_dtype(torch.float64)
        changed = corrupt(clips, name, severity=4)
    finally:
        torch.set_default_dtype(torch.float32)
    assert changed.dtype == torch.float32
    assert torch.equal(changed, expected)


def test_a_missing_codec_is_named():
    with pytest.raises(UserError, match=r"no encoder 'libx267'.*vidcsl doctor"):
        transcode(np.zeros((2, 64, 64, 3), np.uint8), encoder="libx267", options={})


@pytest.mark.parametrize("suite", SUITES)
def test_the_docs_hold_the_tables(suite):
    assert markdown(suite) in (Path(__file__).parents[2] / "docs" / "corruptions.md").read_text()


@pytest.mark.parametrize("name", ["P/gaussian_noise", "P/defocus_blur", "P/jpeg", "C/bit_error"])
def test_memory_layout_and_threads_change_nothing(name):
    clips = moving_clips(count=2)
    expected = corrupt(clips, name, severity=2, seeds=[1, 2])
    strided = clips.transpose(2, 4).contiguous().transpose(2, 4)
    assert not strided.is_contiguous()
    assert torch.equal(corrupt(strided, name, severity=2, seeds=[1, 2]), expected)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1 if threads > 1 else 2)
        assert torch.equal(corrupt(clips, name, severity=2, seeds=[1, 2]), expected)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("frames", [3, 8, 16])
def test_exposure_flicker_is_the_same_to_the_bit_in_any_batch(frames):
    clips = torch.rand(9, 3, frames, 6, 6, generator=torch.Generator().manual_seed(0))
    options = {"name": "V/exposure_flicker", "severity": 3}
    together = corrupt(clips, **options)
    for size in (1, 2, 5):
        parts = [
            corrupt(clips[i : i + size], **options, seeds=range(i, min(i + size, 9)))
            for i in range(0, 9, size)
        ]
        assert torch.equal(torch.cat(parts), together)
