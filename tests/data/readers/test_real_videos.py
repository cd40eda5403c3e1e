"""Every reader gives the frames that a decoder puts out when it goes through the file in order.

Readers convert and scale colours by different code, so their pixels differ a little everywhere,
and more where colours change sharply. Frames that are one apart differ more in a moving scene.
"""

import av
import numpy as np
import pytest

from tests.data.made_videos import SHARED
from tests.data.readers.installed import HAS_DECORD, HAS_TORCHCODEC
from vidcsl.data.readers import open_reader, scaled_size
from vidcsl.errors import VideoError

pytestmark = pytest.mark.skipif(not SHARED.is_dir(), reason="the shared videos are not here")

OTHERS = ["decord"] * HAS_DECORD + ["torchcodec"] * HAS_TORCHCODEC
ASSETS = SHARED / "decoder_assets"
NOT_VIDEO = ("SOURCE.txt", "SHA256SUMS", "README")
DAMAGED = ASSETS / "decord/corrupted.mp4"
# decord's FFmpeg is of 2018 and does not know these.
NOT_DECORD = (".gif", ".h264", ".h265", "av1_video.mkv")


def all_files():
    files = [path for path in sorted(ASSETS.rglob("*")) if path.is_file()]
    odd = [path for path in files if path.name not in NOT_VIDEO and path != DAMAGED]
    return [*odd, *sorted((SHARED / "ucf101_original").glob("*/*.avi"))]


def truth(path):
    """A few frames, their numbers, and the count, by a walk through the whole file."""
    with av.open(str(path), metadata_errors="ignore") as container:
        stream = container.streams.best("video")
        stream.thread_type = "NONE"
        count = sum(1 for _ in container.decode(stream))
    wanted = sorted({0, 1, count // 3, 2 * count // 3, count - 1} & set(range(count)))
    frames = []
    with av.open(str(path), metadata_errors="ignore") as container:
        stream = container.streams.best("video")
        for number, frame in enumerate(container.decode(stream)):
            if number in wanted:
                turns = frame.rotation // 90
                small = frame.reformat(*size_of(frame), "gbrp", interpolation="BILINEAR")
                frames.append(np.rot90(small.to_ndarray(), turns))
    return count, wanted, np.stack(frames)


def size_of(frame):
    height, width = scaled_size(frame.height, frame.width, short_side=64)
    return width, height


@pytest.mark.parametrize("path", all_files(), ids=lambda path: path.name)
def test_same_frames_as_in_order(path):
    count, wanted, frames = truth(path)
    with open_reader(path, short_side=64) as reader:
        assert reader.num_frames == count
        np.testing.assert_array_equal(reader.read(wanted), frames)
        np.testing.assert_array_equal(reader.read(wanted[2:4]), frames[2:4])  # past others
        with pytest.raises(VideoError):
            reader.read([count])
    for backend in OTHERS:
        if backend == "decord" and path.name.endswith(NOT_DECORD):
            continue
        with open_reader(path, backend=backend, short_side=64) as reader:
            assert reader.num_frames == count
            others = reader.read(wanted)
        assert others.shape == frames.shape
        difference = np.abs(others.astype(int) - frames).mean(axis=(1, 2, 3))
        assert difference.max() < 3.5, (backend, difference)


def test_damaged_data_is_no_frame():
    with open_reader(DAMAGED) as reader, pytest.raises(VideoError):
        reader.read(range(reader.num_frames))
