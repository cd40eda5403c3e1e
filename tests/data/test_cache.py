import numpy as np
import pytest
import torch
from torchvision.io import encode_png

from tests.data.made_videos import numbers, write_numbered
from vidcsl.data.dataset import cached_opener
from vidcsl.data.lists import Video
from vidcsl.data.readers import Source, open_reader
from vidcsl.errors import VideoError


def open_cached(video, **options):
    return cached_opener(video, **options)()


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
    monkeypatch.setattr("vidcsl.data.dataset.open_reader", None)  # a second decode would fail
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


def test_a_folder_of_pictures_is_stored_anew_when_one_of_them_is_another(tmp_path):
    pictures = tmp_path / "pictures"
    for name, value in (("1.png", 10), ("2.png", 20)):
        write_picture(pictures / name, value)
    options = {"folder": tmp_path / "cache", "backend": "auto", "short_side": 32}
    with open_cached(Video(pictures), **options) as reader:
        assert reader.read([0, 1])[:, 0, 0, 0].tolist() == [10, 20]
    write_picture(pictures / "2.png", 90)  # in place: the folder's own time stays
    with open_cached(Video(pictures), **options) as reader:
        assert reader.read([0, 1])[:, 0, 0, 0].tolist() == [10, 90]


def write_picture(path, value):
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(encode_png(torch.full((3, 32, 32), value, dtype=torch.uint8)).numpy())


def test_bytes_are_fetched_before_the_decoding(video, tmp_path, monkeypatch):
    fetched = []
    monkeypatch.setattr(Video, "source", lambda self: fetched.append(1) or Source.of(self.path))
    options = {"folder": tmp_path / "cache", "backend": "auto", "short_side": 32}
    open_video = cached_opener(Video(video), **options)
    assert fetched == [1]
    open_video().close()
    cached_opener(Video(video), **options)().close()
    assert fetched == [1]  # what is stored is not fetched
