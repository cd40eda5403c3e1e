import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.robustness.test_corruptions import moving_clips, psnr
from vidcsl.robustness.corruptions import codec, corrupt, corrupt_and_count, corrupt_and_inspect
from vidcsl.robustness.corruptions import codec as stream
from vidcsl.robustness.corruptions.codec import SOURCE_QUALITY

SEEDS = range(3)


def generators(seed: int = 0) -> list[np.random.Generator]:
    return [np.random.default_rng(seed)]


def coded(clips: torch.Tensor) -> torch.Tensor:
    """What an undamaged stream gives back."""
    return codec.transcode_clips(clips, encoder="libx264", options=lambda _: SOURCE_QUALITY)


@pytest.fixture(scope="module")
def clips() -> torch.Tensor:
    return moving_clips(count=1, height=80, width=96)


@pytest.mark.parametrize(
    ("function", "parameters"),
    [
        (stream.bit_error, {"bytes_per_error": 1e15}),
        (stream.packet_loss, {"probability": 0.0}),
    ],
)
def test_no_damage_is_a_round_trip_through_h264(function, parameters, clips):
    recovered = function(clips, generators=generators(), **parameters)
    assert recovered.repeated.tolist() == [0]
    assert torch.equal(recovered.clips, coded(clips))


def test_slices_without_loss_are_close_to_the_clip(clips):
    recovered = stream.nal_loss(clips, generators=generators(), probability=0.0)
    assert recovered.repeated.tolist() == [0]
    assert psnr(recovered.clips, clips) > psnr(coded(clips), clips) - 1


@pytest.mark.parametrize(
    ("function", "parameters"),
    [
        (stream.packet_loss, {"probability": 1.0}),
        (stream.nal_loss, {"probability": 1.0}),
        (stream.bit_error, {"bytes_per_error": 1}),
    ],
)
def test_where_nothing_is_left_the_clip_is_black_and_every_frame_counts(
    function, parameters, clips
):
    recovered = function(clips, generators=generators(), **parameters)
    assert recovered.clips.shape == clips.shape
    if function is not stream.bit_error:  # what a decoder makes of noise is its own affair
        assert recovered.repeated.tolist() == [clips.shape[2]]
        assert not recovered.clips.any()


def test_a_frame_that_is_gone_is_the_last_good_one_and_counted(clips):
    frames = (clips[0].permute(1, 2, 3, 0) * 255).byte().numpy()
    decoded = list(codec.decode(codec.encode(frames, encoder="libx264", options=SOURCE_QUALITY)))
    kept = [f for f in decoded if f.pts not in (0, 1, 5, 6, 15)]
    filled, repeated = stream._recovered(frames, kept)
    whole, _ = stream._recovered(frames, decoded)
    assert repeated == 5
    sources = [2, 2, 2, 3, 4, 4, 4, 7, 8, 9, 10, 11, 12, 13, 14, 14]
    assert np.array_equal(filled, whole[sources])


@pytest.mark.parametrize("name", ["C/bit_error", "C/packet_loss", "V/nal_loss"])
def test_more_damage_on_average_at_a_higher_severity(name):
    batch = moving_clips(count=4, height=112, width=112)
    batch += 0.1 * torch.rand(batch.shape, generator=torch.Generator().manual_seed(0)) - 0.05
    batch = batch.clamp(0, 1)
    means = [
        np.mean(
            [psnr(corrupt(batch, name, severity=s, seeds=range(k, k + 4)), batch) for k in (0, 10)]
        )
        for s in (1, 3, 5)
    ]
    assert means == sorted(means, reverse=True)
    assert means[0] > means[2] + 1


@pytest.mark.parametrize("name", ["C/bit_error", "C/packet_loss", "V/nal_loss"])
def test_damage_depends_on_the_seed_alone(name):
    batch = moving_clips(count=4, height=112, width=112)
    together, counts = corrupt_and_count(batch, name, severity=5, seeds=range(4))
    for i in (3, 0, 2, 1):
        alone, count = corrupt_and_count(batch[[i]], name, severity=5, seeds=[i])
        assert torch.equal(alone[0], together[i])
        assert int(count) == int(counts[i])


def test_units_of_a_stream_join_to_it_again(clips):
    frames = (clips[0].permute(1, 2, 3, 0) * 255).byte().numpy()
    options = {**SOURCE_QUALITY, "slice-max-size": "200"}
    packets = codec.encode(frames, encoder="libx264", options=options).packets
    units = stream.split_units(bytes(packets[0]))
    assert b"".join(units) == bytes(packets[0])
    slices = [unit for unit in units if unit.is_slice]
    assert len(slices) > 2
    assert max(map(len, slices)) <= 210


@given(st.lists(st.binary(min_size=1, max_size=20).filter(lambda b: b"\0" not in b), min_size=1))
def test_splitting_finds_every_start_code(payloads):
    units = [b"\0" * (2 + i % 2) + b"\1" + payload for i, payload in enumerate(payloads)]
    assert stream.split_units(b"".join(units)) == units


def test_bit_rates_are_shares_of_the_clip_s_own(clips):
    frames = (clips[0].permute(1, 2, 3, 0) * 255).byte().numpy()
    source = codec.encode(frames, encoder="libx264", options=SOURCE_QUALITY).bits_per_second
    harm = [-psnr(corrupt(clips, "C/h264_bit_rate", severity=s, seeds=[0]), clips) for s in (1, 5)]
    assert source > 10_000
    assert harm[1] > harm[0] + 3


def noisy_clips(count: int, size: int, frames: int = 8) -> torch.Tensor:
    clips = moving_clips(count=count, height=size, width=size)[:, :, :frames]
    clips = clips + 0.1 * torch.rand(clips.shape, generator=torch.Generator().manual_seed(0)) - 0.05
    return clips.clamp(0, 1)


@pytest.mark.parametrize("name", ["C/bit_error", "C/packet_loss"])
def test_short_clips_of_small_frames_are_hit_as_often_as_published_ones(name):
    """By rates for large files, 7 of 100 clips of 8 x 48 x 48 were at severity 3, 17 at 5."""
    clips = noisy_clips(24, 48)
    shares = {}
    for severity in (1, 5):
        found = corrupt_and_inspect(clips, name, severity=severity, seeds=range(24))
        shares[severity] = float(found.damaged.double().mean())
        differs = (found.clips != coded(clips)).flatten(1).any(1)
        assert (found.damaged | ~differs).all()  # what differs was hit
        assert (found.repeated[~found.damaged] == 0).all()
    assert shares[1] >= 0.1
    assert shares[5] >= 0.6
    assert shares[5] > shares[1]


def test_rates_are_as_published_for_frames_of_published_size():
    frames = np.zeros((2, 256, 340, 3), np.uint8)
    assert stream._smaller(frames) == 1.0
    assert stream._smaller(frames[:, :128, :170]) == 4.0
    assert stream._smaller(np.zeros((2, 480, 640, 3), np.uint8)) == 1.0
