import numpy as np
import pytest

from tests.data.made_videos import numbers, write_numbered
from vidcsl.data.cache import open_cached
from vidcsl.data.lists import Video
from vidcsl.data.readers import open_reader
from vidcsl.errors import VideoError


@pytest.fixture
def video(tmp_path):
    return write_numbered(tmp_path / "video.mp4", frames=20)


def test_the_same_frames_as_decoded_and_decoded_once(video, tmp_path, monkeypatch):
    options = {"backend": "auto", "short_side": 32}
    with open_reader(video, **options) as reader:
        wanted, facts = reader.read([7, 3, 3, 19]), (reader.num_frames, reader.fps)
    folder = tmp_path / "cache"
    with open_cached(Video(video), folder=folder, **options) as first:
        assert np.array_equal(first.read([7, 3, 3, 19]), wanted)
    monkeypatch.setattr("vidcsl.data.cache.open_reader", None)  # a second decode would fail
    with open_cached(Video(video), folder=folder, **options) as again:
        assert np.array_equal(again.read([7, 3, 3, 19]), wanted)
        assert (again.num_frames, again.fps) == facts
        assert (again.height, again.width) == wanted.shape[1:3]
        with pytest.raises(VideoError, match="no frame 20"):
            again.read([20])


def test_another_size_or_a_changed_file_is_stored_anew(video, tmp_path):
    folder = tmp_path / "cache"
    for side in (32, 48):
        with open_cached(Video(video), folder=folder, backend="auto", short_side=side) as reader:
            assert reader.height == side
    write_numbered(video, frames=12)
    with open_cached(Video(video), folder=folder, backend="auto", short_side=32) as reader:
        assert numbers(reader.read(range(12))) == list(range(12))
        assert reader.num_frames == 12


def test_a_bad_video_leaves_nothing_behind(tmp_path):
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"no video" * 99)
    for path in (bad, tmp_path / "missing.mp4"):
        with pytest.raises(VideoError):
            open_cached(Video(path), folder=tmp_path / "cache", backend="auto", short_side=32)
    assert not list((tmp_path / "cache").glob("*"))
