import base64
import io
import re

import av
import numpy as np
import pytest

from vidcsl.report.pictures import encode_mp4, player


def moving_square(frames=9, height=48, width=64):
    film = np.full((frames, height, width, 3), 40, np.uint8)
    for time, picture in enumerate(film):
        picture[10:26, 3 * time : 3 * time + 16] = (200, 90, 30)
    return film


def decode(film):
    with av.open(io.BytesIO(film)) as container:
        stream = container.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        return np.stack(frames), stream


def films_of(page):
    """The page without its films, and the frames of each: H.264 encoders may differ in bytes."""
    data = r"data:video/mp4;base64,([^\"]+)"
    films = [decode(base64.b64decode(film))[0] for film in re.findall(data, page)]
    assert films
    return re.sub(data, "", page), films


def assert_films_alike(films, others):
    """Hold the frames of films against those of others, as far as lossy encoders agree."""
    for film, other in zip(films, others, strict=True):
        assert film.shape == other.shape
        assert np.abs(film.astype(int) - other).mean() < 3


def test_film_shows_the_frames():
    frames = moving_square()
    decoded, stream = decode(encode_mp4(frames, fps=12.5))
    assert decoded.shape == frames.shape
    assert stream.codec_context.pix_fmt == "yuv420p"
    assert float(stream.average_rate) == 12.5
    # Colour is stored at half the resolution: the square's edges are off, its area is not.
    assert np.abs(decoded.astype(int) - frames).mean() < 3


@pytest.mark.parametrize(("height", "width"), [(47, 64), (48, 63), (1, 1)])
def test_odd_sizes_are_padded_by_one(height, width):
    frames = np.full((2, height, width, 3), 128, np.uint8)
    decoded, _ = decode(encode_mp4(frames))
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
        encode_mp4(frames)


def test_player_holds_the_film_and_a_safe_label():
    frames = moving_square()
    page = str(player(frames, label='fog "5" <script>', width=128))
    assert "<script>" not in page
    assert 'width="128" height="96"' in page
    assert not re.search(r"https?:", page)
    film = base64.b64decode(re.search(r"base64,([^\"]+)", page)[1])
    assert len(decode(film)[0]) == len(frames)
