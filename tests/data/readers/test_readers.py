import importlib.util
import os
import pickle
from time import sleep

import av
import numpy as np
import pytest
from PIL import Image

from tests.data.made_videos import SHARED, numbers, write_numbered
from tests.data.mutants import mutant
from tests.data.readers.installed import decoders, needs_decord
from vidcsl.data.dataset import time_limit
from vidcsl.data.readers import Source, open_reader, scaled_size
from vidcsl.errors import UserError, VideoError

needs_videos = pytest.mark.skipif(not SHARED.is_dir(), reason="the shared videos are not here")
backends = pytest.mark.parametrize("backend", [*decoders(), "auto"])

FILES = {
    "h264.mp4": {"codec": "libx264", "options": {"bf": "2", "g": "8"}},
    "no_count.mkv": {"codec": "libx264", "options": {"bf": "2", "g": "8"}},
    "b_frames.avi": {"codec": "mpeg4", "options": {"bf": "2", "g": "8", "qmax": "4"}},
    "vp9.webm": {"codec": "libvpx-vp9", "options": {"deadline": "realtime", "cpu-used": "8"}},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("readers")
    for name, how in FILES.items():
        write_numbered(folder / name, frames=30, **how)
    return folder


def read(path, indices, **kwargs):
    with open_reader(path, **kwargs) as reader:
        return reader.read(indices)


def difference(one, other):
    return np.abs(one.astype(int) - other).mean(axis=(1, 2, 3)).max()


@backends
@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    "indices", [[29], [0, 29], [28, 29], [17, 3, 17, 0, 29, 3], list(range(30)), [5, 13, 21], []]
)
def test_returns_exactly_the_frames_asked_for(folder, backend, name, indices):
    with open_reader(folder / name, backend=backend) as reader:
        assert (reader.num_frames, reader.height, reader.width) == (30, 64, 96)
        assert reader.fps == pytest.approx(25)
        frames = reader.read(indices)
        assert frames.shape == (len(indices), 64, 96, 3)
        assert frames.dtype == np.uint8
        if indices:
            assert numbers(frames) == indices
            np.testing.assert_array_equal(reader.read(indices), frames)  # a reader can be reused


@backends
@pytest.mark.parametrize("index", [30, -1, 10**6])
def test_no_frame_beyond_the_file(folder, backend, index):
    with (
        open_reader(folder / "h264.mp4", backend=backend) as reader,
        pytest.raises(VideoError, match=rf"h264\.mp4: no frame {index}, it holds 30 frames"),
    ):
        reader.read([0, index])


@backends
@pytest.mark.parametrize("short_side", [32, 48, 50, 128])  # 48 and 72 wide: see _rows_look_whole
def test_short_side_scales_down_and_up(folder, backend, short_side):
    with open_reader(folder / "h264.mp4", backend=backend, short_side=short_side) as reader:
        assert (reader.height, reader.width) == (short_side, short_side * 3 // 2)
        frames = reader.read([4, 9])
        assert frames.shape[1:3] == (reader.height, reader.width)
        assert numbers(frames) == [4, 9]


@pytest.mark.parametrize(
    ("size", "short_side", "expected"),
    [
        ((240, 320), 128, (128, 171)),  # 170.67
        ((320, 240), 112, (149, 112)),  # 149.33
        ((3, 2), 3, (5, 3)),  # a half goes up
        ((240, 320), None, (240, 320)),
        ((101, 101), 50, (50, 50)),
    ],
)
def test_scaled_size(size, short_side, expected):
    assert scaled_size(*size, short_side=short_side) == expected


@backends
@pytest.mark.parametrize(("rotation", "corner"), [(90, (-1, 0)), (180, (-1, -1)), (-90, (0, -1))])
def test_rotated_files_come_upright(tmp_path, backend, rotation, corner):
    path = write_numbered(tmp_path / "turned.mp4", frames=4, rotation=rotation)
    turned = rotation % 180 != 0
    with open_reader(path, backend=backend) as reader:
        frames = reader.read([2])
        assert frames.shape[1:3] == (reader.height, reader.width)
        assert (reader.height, reader.width) == ((96, 64) if turned else (64, 96))
    assert numbers(frames) == [2]
    corners = {(y, x): frames[0, 8 * y :, 8 * x :][:8, :8].mean() for y in (0, -1) for x in (0, -1)}
    assert max(corners, key=corners.__getitem__) == corner  # where the file's top left went
    assert corners[corner] > 240


@backends
def test_wrong_files_are_named_in_one_line(tmp_path, folder, backend):
    whole = (folder / "h264.mp4").read_bytes()
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("no video at all\n" * 50)
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])  # its index was at the end
    with av.open(str(tmp_path / "sound.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
    with av.open(str(tmp_path / "still.png"), "w", format="image2") as container:
        stream = container.add_stream("png", rate=1)
        stream.height, stream.width, stream.pix_fmt = 16, 16, "rgb24"
        picture = av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), format="rgb24")
        container.mux(stream.encode(picture))
    reasons = {
        "missing.mp4": "there is no such file",
        "empty.mp4": "the file is empty",
        "text.mp4": "not a readable video",
        "cut.mp4": "not a readable video",
        "sound.wav": "no video",
        "still.png": "still image",
    }
    for name, reason in reasons.items():
        with pytest.raises(VideoError, match=reason) as caught:
            open_reader(tmp_path / name, backend=backend)
        assert str(tmp_path / name) in str(caught.value)
        assert "\n" not in str(caught.value)
        assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


@backends
def test_a_file_cut_short_gives_no_invented_frames(tmp_path, folder, backend):
    whole = (folder / "no_count.mkv").read_bytes()
    (tmp_path / "cut.mkv").write_bytes(whole[: len(whole) * 2 // 3])
    with open_reader(tmp_path / "cut.mkv", backend=backend) as reader:
        assert 5 < reader.num_frames < 30
        assert numbers(reader.read(range(5))) == [0, 1, 2, 3, 4]
        with pytest.raises(VideoError, match="no frame 29"):
            reader.read([29])


@backends
def test_damaged_data_is_an_error_of_one_line(tmp_path, folder, backend):
    data = bytearray((folder / "h264.mp4").read_bytes())
    start = data.index(b"mdat") + 4
    end = data.index(b"moov")
    data[start : end - 4] = bytes(end - 4 - start)
    (tmp_path / "zeros.mp4").write_bytes(data)
    with pytest.raises(VideoError) as caught:
        read(tmp_path / "zeros.mp4", [0, 20], backend=backend)
    assert "\n" not in str(caught.value)
    assert ".cc" not in str(caught.value)


def test_a_decoder_that_fails_midway_is_an_error(tmp_path, folder):
    data = bytearray((folder / "h264.mp4").read_bytes())
    with av.open(str(folder / "h264.mp4")) as container:
        packets = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    for position, size in packets[20:]:
        data[position : position + size] = bytes(size)
    (tmp_path / "half.mp4").write_bytes(data)
    assert numbers(read(tmp_path / "half.mp4", [0, 1, 2], backend="pyav")) == [0, 1, 2]
    for backend in ["pyav", "auto"]:
        with pytest.raises(VideoError):
            read(tmp_path / "half.mp4", [27], backend=backend)


def test_unknown_and_missing_backends(folder, monkeypatch):
    with pytest.raises(UserError, match="unknown video reader 'opencv': choose auto"):
        open_reader(folder / "h264.mp4", backend="opencv")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for name in ("decord", "torchcodec"):
        with pytest.raises(UserError, match=f"{name} is not installed here"):
            open_reader(folder / "h264.mp4", backend=name)
    assert open_reader(folder / "h264.mp4").name == "pyav"


@pytest.mark.parametrize("seed", range(60))
def test_damaged_files_are_read_or_reported(tmp_path, folder, seed):
    """Frames or one line, never anything else; `benchmarks/fuzz_readers.py` looks at the frames."""
    name = list(FILES)[seed % len(FILES)]
    path = tmp_path / name
    path.write_bytes(mutant((folder / name).read_bytes(), seed=seed)[1])
    try:
        with open_reader(path, short_side=48) as reader:
            frames = reader.read(range(0, reader.num_frames, 3))
    except VideoError as error:
        message = str(error)
        assert "\n" not in message
    else:
        assert frames.shape[1:] == (reader.height, reader.width, 3)


@needs_decord
def test_decord_tries_no_second_way_once_the_time_is_up(tmp_path, monkeypatch):
    video = write_numbered(tmp_path / "video.mp4", frames=4, size=(64, 80))
    with open_reader(video, backend="decord") as reader:
        decord = importlib.import_module("decord")
        monkeypatch.setattr(decord.VideoReader, "get_batch", lambda *_: sleep(5))
        with pytest.raises(VideoError, match=r"DATA\.TIMEOUT"), time_limit(0.2, "video.mp4"):
            reader.decode_unchecked(np.array([0]))


@needs_decord
def test_what_decord_does_not_open_pyav_reads(tmp_path):
    policy, priority = os.sched_getscheduler(0), os.sched_getparam(0)
    av1 = write_numbered(tmp_path / "av1.mp4", frames=5, codec="libsvtav1")
    # The encoder makes its caller a real-time process, where it may: others would starve beside it.
    os.sched_setscheduler(0, policy, priority)
    shades = [Image.fromarray(np.full((32, 48), 50 * k, np.uint8)) for k in range(5)]
    shades[0].save(tmp_path / "shades.gif", save_all=True, append_images=shades[1:], duration=40)
    with open_reader(av1, backend="decord") as reader:
        assert reader.name == "pyav"
        assert numbers(reader.read([3, 1])) == [3, 1]
    with open_reader(tmp_path / "shades.gif", backend="decord") as reader:
        assert reader.name == "pyav"
        assert reader.num_frames == 5
        assert reader.read([0, 4]).mean(axis=(1, 2, 3)).tolist() == [0, 200]


@backends
@pytest.mark.parametrize("name", FILES)
def test_bytes_in_memory_are_read_like_the_file(folder, backend, name):
    source = Source("shard.tar/clip", (folder / name).read_bytes())
    with open_reader(source, backend=backend, short_side=48) as reader:
        frames = reader.read([28, 3])
        with pytest.raises(VideoError, match=r"shard\.tar/clip: no frame 30"):
            reader.read([30])
    assert numbers(frames) == [28, 3]
    expected = read(folder / name, [28, 3], backend=backend, short_side=48)
    np.testing.assert_array_equal(frames, expected)


@backends
def test_wrong_bytes_are_named(backend):
    for data, reason in ((b"", "the file is empty"), (b"text " * 99, "not a readable video")):
        with pytest.raises(VideoError, match=f"shard/clip: {reason}"):
            open_reader(Source("shard/clip", data), backend=backend)
