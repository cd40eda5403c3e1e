import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.report.mp4 import decode
from tests.report.run_folder import write_attack, write_corrupted, write_pairs
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
    clean, perturbed, difference = (_pixels(uri).astype(float) for _, uri in picture.strips)
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


def moving_square(frames=9, height=48, width=64):
    clip = np.full((frames, height, width, 3), 40, np.uint8)
    for time, picture in enumerate(clip):
        picture[10:26, 3 * time : 3 * time + 16] = (200, 90, 30)
    return clip


def test_a_video_shows_the_frames():
    frames = moving_square()
    decoded, stream = decode(pictures.encode_mp4(frames, fps=12.5))
    assert decoded.shape == frames.shape
    assert stream.codec_context.pix_fmt == "yuv420p"
    assert float(stream.average_rate) == 12.5
    # Colour is stored at half the resolution: the square's edges are off, its area is not.
    assert np.abs(decoded.astype(int) - frames).mean() < 3


@pytest.mark.parametrize(("height", "width"), [(47, 64), (48, 63), (1, 1)])
def test_odd_sizes_are_padded_by_one(height, width):
    frames = np.full((2, height, width, 3), 128, np.uint8)
    decoded, _ = decode(pictures.encode_mp4(frames))
    assert decoded.shape == (2, height + height % 2, width + width % 2, 3)
    assert np.abs(decoded.astype(int) - 128).max() <= 2


@pytest.mark.parametrize(
    "frames",
    [
        np.zeros((0, 8, 8, 3), np.uint8),
        np.zeros((2, 8, 8), np.uint8),
        np.zeros((2, 3, 8, 8), np.uint8),
        np.zeros((2, 8, 8, 3), np.float32),
    ],
)
def test_other_arrays_are_refused(frames):
    with pytest.raises(ValueError, match=r"uint8 \[T, H, W, 3\]"):
        pictures.encode_mp4(frames)


def test_a_player_holds_the_video_and_a_safe_label():
    frames = moving_square()
    page = str(pictures.player(frames, label='fog "5" <script>', width=128))
    assert "<script>" not in page
    assert 'width="128" height="96"' in page
    assert not re.search(r"https?:", page)
    video = base64.b64decode(re.search(r"base64,([^\"]+)", page)[1])
    assert len(decode(video)[0]) == len(frames)


def test_pairs_keep_their_order_and_say_what_they_are(tmp_path: Path) -> None:
    assert pictures.read_pairs(tmp_path / "pairs.npz") == []
    write_pairs(tmp_path / "pairs.npz", right=2, wrong=1)
    pairs = pictures.read_pairs(tmp_path / "pairs.npz")
    assert [pair.correct for pair in pairs] == [True, True, False]
    assert pairs[0].anchor.class_name == pairs[0].candidate.class_name
    assert pairs[2].anchor.class_name != pairs[2].candidate.class_name
    assert pairs[0].anchor.uri != pairs[0].candidate.uri
    assert pairs[0].similarity == pytest.approx(0.9)
    assert pairs[0].anchor.original.startswith("data:image/jpeg;base64,")
    older = dict(np.load(tmp_path / "pairs.npz"))
    del older["originals"]
    np.savez(tmp_path / "pairs.npz", **older)
    assert pictures.read_pairs(tmp_path / "pairs.npz")[0].anchor.original == ""


def test_corrupted_clips_by_suite(tmp_path: Path) -> None:
    write_corrupted(tmp_path / "corruption_P.gaussian_noise.npz")
    write_corrupted(tmp_path / "corruption_C.fog.npz")
    found = pictures.read_corrupted(tmp_path)
    assert {suite: [clip.name for clip in clips] for suite, clips in found.items()} == {
        "C": ["fog"],
        "P": ["gaussian_noise"],
    }
    (fog,) = found["C"]
    assert fog.severities == (0, 3, 5)
    assert 'aria-label="fog: clean, severity 3, severity 5"' in fog.video
    assert fog.predictions[0] == fog.label


def test_damaged_pairs_are_one_clear_line(tmp_path: Path) -> None:
    path = tmp_path / "pairs.npz"
    np.savez(path, anchors=np.zeros(3))
    with pytest.raises(UserError, match=r"pairs.npz has no array 'candidates"):
        pictures.read_pairs(path)
