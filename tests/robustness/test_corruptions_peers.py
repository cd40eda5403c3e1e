"""The formulas against the published code for images, where that can be imported."""

import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from vidcsl.robustness.corruptions import blur, photometric, weather
from vidcsl.robustness.corruptions import codec as digital
from vidcsl.robustness.corruptions import photometric as noise

GENERATORS = [np.random.default_rng(0)]


@pytest.fixture(scope="module")
def published():
    """imagecorruptions, with the two names that newer releases took away put back."""
    resources = types.ModuleType("pkg_resources")
    resources.resource_filename = lambda package, file: str(
        Path(sys.modules[package.split(".")[0]].__file__).parent / file
    )
    sys.modules.setdefault("pkg_resources", resources)
    if not hasattr(np, "float_"):
        np.float_ = np.float64
    return pytest.importorskip("imagecorruptions.corruptions")


@pytest.fixture(scope="module")
def image():
    rng = np.random.default_rng(1)
    coarse = torch.from_numpy(rng.random((1, 3, 12, 12), dtype=np.float32))
    fine = torch.nn.functional.interpolate(coarse, size=(64, 64), mode="bicubic").clamp(0, 1)
    return (fine[0].permute(1, 2, 0) * 255).byte().numpy()


def as_clip(image):
    return torch.from_numpy(image).permute(2, 0, 1)[None, :, None].float() / 255


def ours(function, image, **parameters):
    clip = function(as_clip(image), generators=GENERATORS, **parameters)
    return clip.clamp(0, 1)[0, :, 0].permute(1, 2, 0).numpy() * 255


@pytest.mark.parametrize(
    ("theirs", "function", "severity", "parameters", "tolerance"),
    [
        ("contrast", photometric.contrast, 2, {"factor": 0.3}, 0.01),
        ("brightness", photometric.brightness, 3, {"increase": 0.3}, 0.01),
        ("saturate", photometric.saturate, 1, {"factor": 0.3, "increase": 0}, 0.01),
        ("saturate", photometric.saturate, 4, {"factor": 5, "increase": 0.1}, 0.01),
        ("defocus_blur", blur.defocus_blur, 1, {"radius": 3, "alias_blur": 0.1}, 0.05),
        ("defocus_blur", blur.defocus_blur, 3, {"radius": 6, "alias_blur": 0.5}, 0.05),
        # The published kernel of this size sums to 1.01.
        ("defocus_blur", blur.defocus_blur, 5, {"radius": 10, "alias_blur": 0.5}, 2.0),
        ("zoom_blur", blur.zoom_blur, 2, {"stop": 1.16, "step": 0.01}, 0.3),
        ("pixelate", digital.pixelate, 1, {"share": 0.6}, 0.6),
        ("pixelate", digital.pixelate, 5, {"share": 0.25}, 0.6),
        ("jpeg_compression", digital.jpeg, 3, {"quality": 15}, 0.01),
    ],
)
def test_mean_difference_in_grey_levels(
    published, image, theirs, function, severity, parameters, tolerance
):
    from PIL import Image

    expected = np.asarray(getattr(published, theirs)(Image.fromarray(image), severity), float)
    actual = ours(function, image, **parameters)
    assert np.abs(actual - expected).mean() <= tolerance


@pytest.mark.parametrize(
    ("theirs", "function", "severity", "parameters"),
    [
        ("gaussian_noise", noise.gaussian_noise, 1, {"sigma": 0.08}),
        ("speckle_noise", noise.speckle_noise, 1, {"sigma": 0.15}),
        ("impulse_noise", noise.impulse_noise, 3, {"amount": 0.09}),
        ("shot_noise", noise.shot_noise, 1, {"rate": 60}),
        ("shot_noise", noise.shot_noise, 4, {"rate": 5}),
    ],
)
def test_noise_has_the_published_distribution(published, theirs, function, severity, parameters):
    """Two-sample Kolmogorov-Smirnov at one grey level; 1.63 / sqrt(n / 2) is its 1 % bound."""
    from PIL import Image

    flat = np.full((128, 128, 3), 100, np.uint8)
    np.random.seed(0)
    expected = np.asarray(getattr(published, theirs)(Image.fromarray(flat), severity), float)
    actual = ours(function, flat, **parameters)
    both = np.unique(np.concatenate([expected.ravel(), actual.ravel()]).round(3))
    shares = [
        np.searchsorted(np.sort(values.ravel().round(3)), both, side="right") / values.size
        for values in (expected, actual)
    ]
    assert np.abs(shares[0] - shares[1]).max() < 1.63 / (flat.size / 2) ** 0.5


@pytest.mark.parametrize("decay", [1.4, 2.0])
def test_fog_is_as_rough_as_the_published_one(published, decay):
    np.random.seed(0)
    rough: dict[str, list[float]] = {"ours": [], "theirs": []}
    for seed in range(60):
        cloud = weather.plasma_fractal(128, decay=decay, generator=np.random.default_rng(seed))
        other = published.plasma_fractal(128, decay)
        for who, layer in (("ours", cloud.numpy()), ("theirs", other)):
            rough[who].append(float(np.abs(np.diff(layer, axis=1)).mean()))
    assert np.mean(rough["ours"]) == pytest.approx(np.mean(rough["theirs"]), rel=0.12)
