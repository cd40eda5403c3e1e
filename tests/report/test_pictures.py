import base64
import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.report.run_folder import write_attack
from vidcsl.errors import UserError
from vidcsl.report import pictures


def _pixels(uri: str) -> np.ndarray:
    content = base64.b64decode(uri.removeprefix("data:image/png;base64,"))
    image = Image.open(io.BytesIO(content))
    image.load()
    assert image.mode == "RGB"
    return np.asarray(image)


@pytest.mark.parametrize("shape", [(1, 1, 3), (5, 7, 3), (64, 33, 3)])
def test_png_is_read_back_exactly_by_another_reader(shape: tuple[int, int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    np.testing.assert_array_equal(_pixels(pictures.strip_uri(image[None])), image)


def test_strips_show_clean_perturbed_and_amplified_difference(tmp_path: Path) -> None:
    path = tmp_path / "attack_pgd_linf.npz"
    write_attack(path, eps=8)
    picture = pictures.read_attack_picture(path)
    clean, perturbed, difference = (_pixels(film.uri).astype(float) for film in picture.films)
    stored = np.load(path)
    frames = np.concatenate(list(stored["clean"]), axis=1).astype(float)
    change = np.concatenate(list(stored["difference"].astype(np.float32)), axis=1)
    np.testing.assert_array_equal(clean, frames)
    np.testing.assert_allclose(perturbed, np.clip(frames + 255 * change, 0, 255), atol=0.51)
    np.testing.assert_allclose((difference / 255 - 0.5) / picture.factor, change, atol=1e-3)
    assert difference.min() > 0  # not clipped
    assert difference.max() < 255
    assert (picture.attack, picture.eps) == ("pgd_linf", "8/255")
    assert (picture.label, picture.adversarial_prediction) == ("Lunges", "JumpingJack")


@given(st.floats(1e-5, 0.5))
def test_amplification_fills_the_range_and_never_clips(largest: float) -> None:
    factor = pictures.amplification(largest)
    assert factor * largest <= 0.5 * (1 + 1e-5)
    assert factor * largest >= 0.5 / 2.5 * (1 - 1e-5)


@pytest.mark.parametrize("largest", [0.0, 0.9])
def test_no_or_large_differences_are_not_amplified(largest: float) -> None:
    assert pictures.amplification(largest) == 1


def test_large_frames_are_thinned_evenly() -> None:
    assert pictures.chosen_frames(16, 112 * 112) == tuple(range(16))
    assert pictures.chosen_frames(16, 224 * 224) == (0, 4, 8, 11, 15)
    assert pictures.chosen_frames(2, 1000 * 1000) == (0, 1)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"difference": None}, "no array 'difference'"),
        ({"clean": np.zeros((2, 4, 4, 3), np.uint8)}, "must be [T, H, W, 3]"),
        ({"clean": np.array([{}])}, "cannot read"),  # pickled: never loaded
    ],
)
def test_a_wrong_file_is_one_clear_line(tmp_path: Path, changes: dict, words: str) -> None:
    path = tmp_path / "attack_pgd_linf.npz"
    write_attack(path)
    arrays = {**np.load(path), **changes}
    np.savez(path, **{name: value for name, value in arrays.items() if value is not None})
    with pytest.raises(UserError) as caught:
        pictures.read_attack_picture(path)
    assert words in str(caught.value)
    assert "attack_pgd_linf.npz" in str(caught.value)


def test_half_a_file_is_one_clear_line(tmp_path: Path) -> None:
    path = tmp_path / "attack_pgd_linf.npz"
    write_attack(path)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(UserError, match="cannot read"):
        pictures.read_attack_picture(path)
