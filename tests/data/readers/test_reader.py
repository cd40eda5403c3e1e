import io

import av
import numpy as np
import pytest
from PIL import Image

from tests.data.made_videos import numbers, write_numbered
from tests.data.readers.installed import decoders
from vidcsl.data.readers import open_reader
from vidcsl.data.readers.reader import Reader
from vidcsl.errors import VideoError

CLIPS = np.array([[0, 2, 4], [3, 4, 4]])
BOXES = np.array([[4, 10, 40, 60], [20, 0, 24, 24]])


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """Frames of one grey each, whose texture stands at the top."""
    return write_numbered(tmp_path_factory.mktemp("crops") / "v.mp4", frames=8, size=(96, 128))


@pytest.mark.parametrize("backend", decoders())
@pytest.mark.parametrize("short_side", [None, 64])
def test_crops_are_the_boxes_of_the_frames(video, backend, short_side):
    with open_reader(video, backend=backend, short_side=short_side) as reader:
        crops = reader.read_crops(CLIPS, BOXES, size=32)
        whole = Reader.read_crops(reader, CLIPS, BOXES, size=32)
    assert crops.shape == (2, 3, 3, 32, 32)
    assert crops.dtype == np.uint8
    assert crops.flags.c_contiguous
    assert [numbers(view.transpose(1, 2, 3, 0)) for view in crops] == CLIPS.tolist()
    # Two ways to resample, and a corner that is rounded to a pixel of the colour planes.
    assert np.abs(crops.astype(int) - whole).mean() < 4


def test_a_crop_shows_what_lies_in_its_box(tmp_path):
    """Its white top left corner, 16 pixels wide, fills a box of half that from the corner on."""
    path = write_numbered(tmp_path / "v.mp4", frames=3)
    with open_reader(path) as reader:
        corner, below = reader.read_crops(
            np.array([[2], [2]]), np.array([[2, 2, 12, 12], [30, 30, 12, 12]]), size=16
        )
    assert corner.min() > 230
    assert abs(below.mean() - 16) < 3


@pytest.mark.parametrize("rotation", [90, 180, -90])
def test_turned_files_are_cut_upright(tmp_path, rotation):
    path = write_numbered(tmp_path / "turned.mp4", frames=4, rotation=rotation)
    with open_reader(path) as reader:
        whole = reader.read([2])
        box = np.array([[0, 0, reader.height, reader.height]])
        crop = reader.read_crops(np.array([[2]]), box, size=reader.height)
    expected = whole[:, :, : whole.shape[1]].transpose(3, 0, 1, 2)
    if rotation == 180:
        np.testing.assert_array_equal(crop[0], expected)
    assert crop.shape == (1, 3, 1, whole.shape[1], whole.shape[1])


def test_smallest_boxes(video):
    with open_reader(video) as reader:
        crops = reader.read_crops(CLIPS[:1], np.array([[95, 127, 1, 1]]), size=8)
    assert crops.shape == (1, 3, 3, 8, 8)


def test_the_cover_of_an_audio_file_is_no_video(tmp_path):
    cover = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(cover, "png")
    path = tmp_path / "song.mp3"
    with av.open(str(path), "w") as container:
        sound = container.add_stream("mp3", rate=44100)
        picture = container.add_stream("png", rate=1)
        picture.width, picture.height, picture.pix_fmt = 64, 64, "rgb24"
        picture.disposition = av.stream.Disposition.attached_pic
        packet = av.Packet(cover.getvalue())
        packet.stream, packet.pts, packet.dts = picture, 0, 0
        packet.is_keyframe = True
        container.mux(packet)
        for k in range(20):
            samples = np.zeros((2, 1152), np.float32)
            frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="stereo")
            frame.sample_rate, frame.pts = 44100, 1152 * k
            container.mux(sound.encode(frame))
        container.mux(sound.encode())
    with pytest.raises(VideoError, match="only the cover of its sound"):
        open_reader(path)
