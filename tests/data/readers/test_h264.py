import av
import numpy as np
import pytest
from av.video.frame import PictureType

from tests.data.made_videos import numbers, write_numbered
from vidcsl.data.readers import open_reader
from vidcsl.data.readers.h264 import spare_times
from vidcsl.errors import VideoError

HOW = {"bf": "2", "g": "30", "b-pyramid": "none", "b_strategy": "0"}


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return write_numbered(tmp_path_factory.mktemp("h264") / "v.mp4", frames=20, options=HOW)


def packets_of(container):
    return [packet for packet in container.demux(video=0) if packet.size]


@pytest.mark.parametrize("profile", ["high", "baseline", "high422"])
def test_b_pictures_may_be_left_out(tmp_path, profile):
    options = HOW | {"profile": profile}
    pixels = "yuv422p" if profile == "high422" else "yuv420p"
    path = write_numbered(tmp_path / "v.mp4", frames=20, options=options, pix_fmt=pixels)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        spare = spare_times(packets_of(container), stream)
    with av.open(str(path)) as container:
        kinds = {frame.pts: frame.pict_type for frame in container.decode(video=0)}
    assert spare == {pts for pts, kind in kinds.items() if kind == PictureType.B}
    assert bool(spare) == (profile != "baseline")


def test_nothing_is_left_out_where_a_picture_referred_to_seems_spare(tmp_path, video):
    data = bytearray(video.read_bytes())
    with av.open(str(video)) as container:
        packets, stream = packets_of(container), container.streams.video[0]
        spare = spare_times(packets, stream)
        referred = [packet for packet in packets[1:-3] if packet.pts not in spare]
        places = [packet.pos for packet in referred]
    data[places[2] + 4] &= ~0x60  # the slice's only unit, behind its length
    damaged = tmp_path / "damaged.mp4"
    damaged.write_bytes(data)
    with av.open(str(damaged)) as container:
        assert not spare_times(packets_of(container), container.streams.video[0])
    with open_reader(damaged) as reader, pytest.raises(VideoError):
        reader.read([19])


def test_unwanted_pictures_change_nothing(video):
    with open_reader(video) as reader:
        whole = reader.read(range(20))
        for wanted in ([19], [1, 2], [7, 13], [0, 18]):
            frames = reader.read(wanted)
            assert numbers(frames) == wanted
            np.testing.assert_array_equal(frames, whole[wanted])
