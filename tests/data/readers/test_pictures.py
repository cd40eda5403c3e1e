import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.io import write_jpeg, write_png

from tests.data.made_videos import STEP, numbers, video_list
from vidcsl.data.dataset import ClipDataset
from vidcsl.data.lists import check_files
from vidcsl.data.readers import open_reader
from vidcsl.errors import VideoError


@pytest.fixture
def folder(tmp_path):
    """Twelve pictures, of which the alphabet would put the tenth before the second."""
    for k in range(12):
        picture = torch.full((3, 40, 60), STEP * k, dtype=torch.uint8)
        if k % 2:
            write_png(picture, str(tmp_path / f"frame{k}.png"))
        else:
            write_jpeg(picture, str(tmp_path / f"frame{k}.jpg"), quality=95)
    (tmp_path / "notes.txt").write_text("no picture")
    return tmp_path


def test_pictures_come_in_the_order_of_their_numbers(folder):
    with open_reader(folder) as reader:
        assert (reader.name, reader.num_frames, reader.fps) == ("pictures", 12, 0)
        assert (reader.height, reader.width) == (40, 60)
        assert numbers(reader.read([11, 2, 10, 2])) == [11, 2, 10, 2]
        with pytest.raises(VideoError, match="no frame 12"):
            reader.read([12])
    with open_reader(folder, short_side=20) as reader:
        assert reader.read([1]).shape == (1, 20, 30, 3)


def test_a_folder_stands_in_a_list_like_a_file(folder):
    videos = video_list([folder])
    check_files(videos.videos)
    data = ClipDataset(videos=videos, sampler=lambda *_: np.array([[3, 5]]), short_side=20, seed=0)
    frames = data[(0, 0)].frames
    assert numbers(frames[0].permute(1, 2, 3, 0).numpy()) == [3, 5]


def test_a_damaged_picture_is_named(folder, tmp_path):
    (folder / "frame3.png").write_bytes(b"no picture")
    with open_reader(folder) as reader:
        assert numbers(reader.read([2])) == [2]
        with pytest.raises(VideoError, match=r"frame3\.png: not a readable picture") as caught:
            reader.read([3])
    assert "\n" not in str(caught.value)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(VideoError, match="holds no"):
        open_reader(empty)
    with pytest.raises(VideoError, match="not a folder of pictures"):
        open_reader(folder / "frame2.jpg", backend="pictures")


def test_sixteen_bits_are_the_same_picture_as_eight(tmp_path):
    ramp = np.linspace(0, 255, 48).astype(np.uint8).reshape(6, 8)
    for bits, values in ((8, ramp), (16, ramp.astype(np.uint16) * 257)):
        (tmp_path / str(bits)).mkdir()
        Image.fromarray(values).save(tmp_path / str(bits) / "0.png")
    eight, sixteen = (open_reader(tmp_path / bits).read([0]) for bits in ("8", "16"))
    np.testing.assert_array_equal(eight, sixteen)
