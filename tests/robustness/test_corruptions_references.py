"""Each corruption against a naive or independent implementation."""

import colorsys
import io

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as V

from vidcsl.robustness.corruptions import blur, camera, draws, photometric, temporal, weather
from vidcsl.robustness.corruptions import codec as digital
from vidcsl.robustness.corruptions import photometric as noise
from vidcsl.robustness.corruptions.draws import to_bytes, to_clips, to_frames


def generators(count: int = 1, seed: int = 0) -> list[np.random.Generator]:
    return [np.random.default_rng(seed + i) for i in range(count)]


def random_clips(*shape: int) -> torch.Tensor:
    clips = torch.rand(shape, generator=torch.Generator().manual_seed(1))
    return (clips * 255).round() / 255


def numbered(length: int) -> torch.Tensor:
    """Frame t holds the number t everywhere."""
    return torch.arange(length).float().view(1, 1, -1, 1, 1).expand(1, 3, -1, 2, 2)


def order(clips: torch.Tensor) -> list[int]:
    assert (clips == clips[:, :1, :, :1, :1]).all()
    return clips[0, 0, :, 0, 0].long().tolist()


GREY = torch.full((1, 3, 8, 64, 64), 128 / 255)


def test_layouts_round_trip():
    clips = random_clips(2, 3, 4, 5, 6)
    frames = to_frames(clips)
    assert torch.equal(frames[1 * 4 + 2], clips[1, :, 2])
    assert torch.equal(to_clips(frames, count=2), clips)
    assert torch.equal(to_bytes(clips).float() / 255, clips)


# Noise: 98,304 values, so means lie within 0.02 standard deviations and deviations within 2 %.


@pytest.mark.parametrize(
    ("function", "parameters", "expected"),
    [
        (noise.gaussian_noise, {"sigma": 0.08}, 0.08),
        (noise.speckle_noise, {"sigma": 0.2}, 0.1),
        (noise.shot_noise, {"rate": 50}, (0.5 / 50) ** 0.5),
    ],
)
def test_noise_has_the_asked_mean_and_deviation(function, parameters, expected):
    difference = function(GREY, generators=generators(), **parameters) - GREY
    assert difference.mean().abs() < 0.02 * expected
    assert difference.std() == pytest.approx(expected, rel=0.02)
    frames = difference[0].transpose(0, 1).flatten(1)
    correlation = torch.corrcoef(frames) - torch.eye(len(frames))
    assert correlation.abs().max() < 0.05  # drawn anew for every frame


def test_impulse_noise_is_half_salt_half_pepper():
    noisy = noise.impulse_noise(GREY, generators=generators(), amount=0.2)
    assert set(noisy.unique().tolist()) == {0.0, float(GREY.max()), 1.0}
    assert (noisy == 0).float().mean() == pytest.approx(0.1, abs=0.005)
    assert (noisy == 1).float().mean() == pytest.approx(0.1, abs=0.005)


def test_shot_noise_counts_whole_photons():
    noisy = noise.shot_noise(random_clips(1, 3, 2, 8, 8), generators=generators(), rate=15)
    torch.testing.assert_close(noisy * 15, (noisy * 15).round())


# Blur


def naive_correlation(image: np.ndarray, kernel: np.ndarray, mode: str) -> np.ndarray:
    reach = len(kernel) // 2
    padded = np.pad(image, reach, mode=mode)
    windows = np.lib.stride_tricks.sliding_window_view(padded, kernel.shape)
    return (windows * kernel).sum((-2, -1))


def disk_kernel(*, radius: int, alias_blur: float) -> np.ndarray:
    """A disk of pixels, smoothed by a Gaussian over 3 x 3 pixels (5 x 5 for a large one)."""
    reach = 1 if radius <= 8 else 2
    axis = np.arange(-radius - 2 * reach, radius + 2 * reach + 1)
    disk = (axis[:, None] ** 2 + axis**2 <= radius**2).astype(float)
    taps = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * alias_blur**2))
    smooth = naive_correlation(disk, np.outer(taps, taps), "constant")[reach:-reach, reach:-reach]
    return smooth / smooth.sum()


@pytest.mark.parametrize(("radius", "alias_blur"), [(3, 0.1), (4, 0.5), (10, 0.5)])
def test_defocus_is_a_convolution_with_a_disk(radius, alias_blur):
    kernel = disk_kernel(radius=radius, alias_blur=alias_blur)
    assert kernel.sum() == pytest.approx(1, abs=1e-5)
    assert np.allclose(kernel, kernel.T)
    assert np.allclose(kernel, kernel[::-1])
    axis = np.arange(len(kernel)) - len(kernel) // 2
    distance = np.hypot(axis[:, None], axis)
    assert np.allclose(kernel[distance < radius - 3], kernel.max(), rtol=1e-4)
    assert np.allclose(kernel[distance > radius + 3], 0)
    clips = random_clips(1, 3, 2, 30, 37)
    blurred = blur.defocus_blur(
        clips, generators=generators(), radius=radius, alias_blur=alias_blur
    )
    expected = naive_correlation(clips[0, 1, 1].numpy(), kernel, "reflect")
    np.testing.assert_allclose(blurred[0, 1, 1].numpy(), expected, atol=1e-5)


def test_motion_blur_is_a_sum_of_shifted_frames():
    radius, sigma = 4, 3.0
    clips = random_clips(1, 3, 3, 20, 24)
    blurred = blur.motion_blur(clips, generators=generators(), radius=radius, sigma=sigma)
    angles = 90 * draws.uniform(3, generators=generators())[0] - 45
    weights = np.exp(-(np.arange(2 * radius + 1) ** 2) / (2 * sigma**2))
    for frame, angle in enumerate(np.deg2rad(angles.numpy())):
        image, expected = clips[0, 2, frame].numpy(), np.zeros((20, 24))
        for i, weight in enumerate(weights / weights.sum()):
            rows = np.clip(np.arange(20) + round(i * np.sin(angle)), 0, 19)
            columns = np.clip(np.arange(24) + round(i * np.cos(angle)), 0, 23)
            expected += weight * image[rows][:, columns]
        np.testing.assert_allclose(blurred[0, 2, frame].numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("stop", [1.11, 1.16])  # of the first, rounding adds the stop itself
def test_zoom_blur_is_the_mean_of_zooms(stop):
    clips = random_clips(1, 3, 2, 48, 48)
    image = clips[0, 0, 1].numpy()
    factors = np.arange(1, stop, 0.01)
    total = image.copy()
    for factor in factors:
        side = int(np.ceil(48 / factor))
        top = (48 - side) // 2
        zoomed = ndimage.zoom(image[top : top + side, top : top + side], factor, order=1)
        trim = (len(zoomed) - 48) // 2
        total += zoomed[trim : trim + 48, trim : trim + 48]
    blurred = blur.zoom_blur(clips, generators=generators(), stop=stop, step=0.01)
    np.testing.assert_allclose(blurred[0, 0, 1].numpy(), total / (len(factors) + 1), atol=1e-4)


@pytest.mark.parametrize("reach", [1, 3, 11])
def test_frame_averaging_is_a_mean_over_time(reach):
    clips = random_clips(2, 3, 8, 4, 5)
    averaged = blur.frame_averaging(clips, generators=generators(2), reach=reach)
    for i in range(8):
        window = [clips[:, :, min(max(j, 0), 7)] for j in range(i - reach, i + reach)]
        torch.testing.assert_close(averaged[:, :, i], torch.stack(window).mean(0))


@given(size=st.integers(1, 9), reach=st.integers(0, 8))
def test_reflect_mirrors_at_the_border_pixels(size, reach):
    index = blur.reflect(torch.arange(-reach, size + reach), size=size)
    assert index.tolist() == np.pad(np.arange(size), reach, mode="reflect").tolist()


# Digital


@pytest.mark.parametrize("quality", [25, 7])
def test_jpeg_is_pillow_s(quality):
    smooth = V.gaussian_blur(random_clips(2, 3, 33, 47), [5, 5])
    clips = torch.stack([smooth, smooth.flip(-1)], 2)
    coded = digital.jpeg(clips, generators=generators(2), quality=quality)
    for n, t in ((0, 0), (1, 1)):
        buffer = io.BytesIO()
        frame = to_bytes(clips[n, :, t]).permute(1, 2, 0).numpy()
        Image.fromarray(frame).save(buffer, "JPEG", quality=quality)
        expected = np.asarray(Image.open(buffer), np.float32) / 255
        difference = np.abs(coded[n, :, t].permute(1, 2, 0).numpy() - expected)
        # Two builds of the decoder may round apart; two qualities differ far more.
        assert difference.max() <= 4 / 255
        assert difference.mean() <= 0.25 / 255


def test_codecs_keep_colour_and_order():
    levels = torch.linspace(0.1, 0.9, 12)
    clips = levels.view(1, 1, -1, 1, 1).expand(1, 3, -1, 37, 45).clone()
    clips[:, 0] *= 0.5
    for function, parameters in (
        (digital.h264, {"crf": 23}),
        (digital.h265, {"crf": 27}),
        (digital.fixed_quantiser, {"encoder": "mpeg2video", "quantiser": 2}),
        (digital.fixed_quantiser, {"encoder": "mpeg4", "quantiser": 2}),
    ):
        coded = function(clips, generators=generators(), **parameters)
        torch.testing.assert_close(coded, clips, rtol=0, atol=0.03)


# Camera


@pytest.mark.parametrize("degrees", [7.5, 45.0, -31.0])
def test_rotation_is_torchvision_s(degrees):
    clips = random_clips(1, 3, 2, 40, 57)
    rotated = camera.rotate(clips, torch.full((1, 2), degrees))
    expected = V.rotate(clips[:, :, 1], degrees, interpolation=InterpolationMode.BILINEAR)
    torch.testing.assert_close(rotated[:, :, 1], expected, rtol=0, atol=1e-3)


def test_static_rotation_turns_counter_clockwise():
    clips = random_clips(1, 3, 2, 32, 32)
    turned = camera.static_rotation(clips, generators=generators(), degrees=90)
    torch.testing.assert_close(turned, clips.rot90(1, (-2, -1)), rtol=0, atol=1e-4)


def test_random_rotation_draws_whole_degrees_per_frame():
    clips = random_clips(1, 3, 6, 16, 16)
    turned = camera.random_rotation(clips, generators=generators(), degrees=13)
    found = []
    for t in range(6):
        errors = {
            d: float(
                (camera.rotate(clips[:, :, [t]], torch.full((1, 1), float(d))) - turned[:, :, [t]])
                .abs()
                .max()
            )
            for d in range(-13, 14)
        }
        found.append(min(errors, key=errors.__getitem__))
        assert errors[found[-1]] < 1e-5
    assert len(set(found)) > 2


def test_translation_shifts_each_frame_and_repeats_the_edge():
    clips = random_clips(1, 3, 12, 9, 10)
    moved = camera.translation(clips, generators=generators(), offset=4)
    shifts = set()
    for t in range(12):
        padded = torch.nn.functional.pad(clips[:, :, t], (0, 4, 0, 4), mode="replicate")
        matches = {
            (y, x)
            for y in range(4)
            for x in range(4)
            if torch.equal(padded[..., y : y + 9, x : x + 10], moved[:, :, t])
        }
        assert len(matches) == 1
        shifts |= matches
    assert len(shifts) > 4


# Temporal


@pytest.mark.parametrize(
    ("function", "parameters", "length", "expected"),
    [
        (temporal.sampling, {"period": 2}, 6, [0, 0, 2, 2, 4, 4]),
        (temporal.sampling, {"period": 4}, 6, [0, 0, 0, 0, 4, 4]),
        (temporal.sampling, {"period": 32}, 6, [0] * 6),
        (temporal.reverse_sampling, {"period": 2}, 6, [4, 4, 2, 2, 0, 0]),
        (temporal.reverse_sampling, {"period": 4}, 6, [4, 4, 4, 4, 0, 0]),
        (temporal.reverse_sampling, {"period": 32}, 6, [0] * 6),
        (temporal.frame_rate, {"rate": 5, "source_rate": 10}, 6, [0, 0, 2, 2, 4, 4]),
        (temporal.frame_rate, {"rate": 4, "source_rate": 10}, 10, [0, 0, 0, 3, 3, 5, 5, 5, 8, 8]),
        (temporal.frame_rate, {"rate": 10, "source_rate": 10}, 4, [0, 1, 2, 3]),
        (temporal.freezing, {"probability": 1.0}, 4, [0] * 4),
        (temporal.freezing, {"probability": 0.0}, 4, [0, 1, 2, 3]),
    ],
)
def test_held_frames_by_hand(function, parameters, length, expected):
    assert order(function(numbered(length), generators=generators(), **parameters)) == expected


@given(length=st.integers(1, 20), segment=st.integers(1, 32), seed=st.integers(0, 99))
def test_jumbling_stays_inside_its_segments(length, segment, seed):
    jumbled = order(
        temporal.jumbling(numbered(length), generators=generators(seed=seed), segment=segment)
    )
    for start in range(0, length, segment):
        assert sorted(jumbled[start : start + segment]) == list(
            range(start, min(start + segment, length))
        )


@given(length=st.integers(1, 20), segments=st.integers(1, 36), seed=st.integers(0, 99))
def test_box_jumbling_moves_whole_parts(length, segments, seed):
    jumbled = order(
        temporal.box_jumbling(numbered(length), generators=generators(seed=seed), segments=segments)
    )
    parts = [p.tolist() for p in np.array_split(np.arange(length), min(segments, length))]
    by_start = {part[0]: part for part in parts}
    rebuilt: list[int] = []
    while len(rebuilt) < length:
        rebuilt += by_start.pop(jumbled[len(rebuilt)])
    assert rebuilt == jumbled


@given(length=st.integers(1, 20), seed=st.integers(0, 99))
def test_freezing_repeats_the_frame_before(length, seed):
    drawn = draws.uniform(length, generators=generators(seed=seed))[0]
    expected = [0]
    for t in range(1, length):
        expected.append(expected[-1] if drawn[t] < 0.4 else t)
    clips = numbered(length)
    assert order(temporal.freezing(clips, generators=generators(seed=seed), probability=0.4)) == (
        expected
    )


# Colour and weather


def pixelwise(clips: torch.Tensor, change) -> torch.Tensor:
    flat = clips.movedim(1, -1).reshape(-1, 3).tolist()
    changed = [colorsys.hsv_to_rgb(*change(*colorsys.rgb_to_hsv(*pixel))) for pixel in flat]
    return torch.tensor(changed).view(clips.movedim(1, -1).shape).movedim(-1, 1)


@pytest.fixture
def colours() -> torch.Tensor:
    clips = random_clips(1, 3, 2, 8, 8)
    clips[..., 0, :3] = torch.tensor([0.0, 0.4, 1.0])  # black, grey and white have no hue
    clips[:, 0, :, 1, :] = 0.0
    return clips


@pytest.mark.parametrize("increase", [0.1, 0.5])
def test_brightness_is_value_in_hsv(colours, increase):
    expected = pixelwise(colours, lambda h, s, v: (h, s, min(v + increase, 1)))
    actual = photometric.brightness(colours, generators=generators(), increase=increase)
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize(("factor", "increase"), [(0.3, 0), (2, 0), (5, 0.1), (20, 0.2)])
def test_saturate_is_saturation_in_hsv(colours, factor, increase):
    expected = pixelwise(colours, lambda h, s, v: (h, min(s * factor + increase, 1), v))
    actual = photometric.saturate(
        colours, generators=generators(), factor=factor, increase=increase
    )
    torch.testing.assert_close(actual, expected)


def test_contrast_shrinks_the_deviation_and_keeps_the_mean():
    clips = random_clips(2, 3, 2, 16, 16)
    dull = photometric.contrast(clips, generators=generators(2), factor=0.3)
    torch.testing.assert_close(dull.mean((-2, -1)), clips.mean((-2, -1)))
    torch.testing.assert_close(dull.std((-2, -1)), 0.3 * clips.std((-2, -1)))


def test_fog_is_one_layer_for_the_whole_clip():
    clips = random_clips(2, 3, 4, 20, 30)
    clips[:, :, :, 0, 0] = 1.0  # the brightest pixel of every frame
    foggy = weather.fog(clips, generators=generators(2), scale=1.5, decay=2)
    layer = foggy * 2.5 - clips
    torch.testing.assert_close(layer, layer[:, :1, :1].expand_as(layer), rtol=0, atol=1e-5)
    assert not torch.allclose(layer[0], layer[1])
    assert layer.min() >= -1e-5
    assert layer.max() <= 1.5 + 1e-5


@given(power=st.integers(1, 7), decay=st.floats(1.2, 3))
def test_a_cloud_fills_its_range(power, decay):
    cloud = weather.plasma_fractal(2**power, decay=decay, generator=generators()[0])
    assert cloud.shape == (2**power, 2**power)
    assert (cloud.min(), cloud.max()) == (0, 1)


def test_a_larger_decay_makes_a_smoother_cloud():
    roughness = [
        float(weather.plasma_fractal(128, decay=d, generator=generators()[0]).diff().abs().mean())
        for d in (1.4, 2.0, 3.0)
    ]
    assert roughness == sorted(roughness, reverse=True)
    assert roughness[0] > 2 * roughness[2]


def test_rain_falls_in_streaks_that_change_from_frame_to_frame():
    clips = torch.full((1, 3, 3, 64, 80), 0.3)
    wet = weather.rain(clips, generators=generators(), area_per_drop=770, length=10, darkening=1)
    streaks = (wet - clips)[0, 0] > 0.01
    drops = 64 * 80 // 770
    for frame in streaks:
        assert 10 < int(frame.sum()) <= drops * 10
        assert int(frame.sum(0).max()) >= 5  # upright: half a streak stands in one column
    assert not torch.equal(streaks[0], streaks[1])
    assert torch.equal(
        (wet - clips)[0, 0][~streaks].abs().max().round(decimals=5), torch.tensor(0.0)
    )
