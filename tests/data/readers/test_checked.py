import numpy as np
import pytest

from tests.data.made_videos import numbers, write_numbered
from tests.data.readers.installed import needs_decord, needs_torchcodec
from vidcsl.data.readers import READERS, open_reader


@pytest.mark.parametrize(
    "backend",
    [
        pytest.param("decord", marks=needs_decord),
        pytest.param("torchcodec", marks=needs_torchcodec),
    ],
)
def test_other_pictures_than_pyavs_are_not_given_out(tmp_path, monkeypatch, backend):
    path = write_numbered(tmp_path / "v.mp4", frames=8)
    with open_reader(path, backend=backend) as reader:
        assert numbers(reader.read([2, 5])) == [2, 5]
        assert reader.name == backend
        kept = READERS[backend].decode_unchecked
        monkeypatch.setattr(
            READERS[backend], "decode_unchecked", lambda self, at: kept(self, np.minimum(at + 1, 7))
        )
        assert numbers(reader.read([2, 5])) == [2, 5]
        assert reader.name == "pyav"
    assert READERS[backend].name == backend


@needs_decord
def test_a_frame_is_the_same_whatever_is_read_with_it(tmp_path, monkeypatch):
    path = write_numbered(tmp_path / "v.mp4", frames=8)
    kept = READERS["decord"].decode_unchecked

    def damaged(self, at):
        frames = kept(self, at).copy()
        frames[at == 5] = 255 - frames[at == 5]  # all of it
        for place in np.flatnonzero(at == 6):  # one block, which hardly changes the mean
            block = frames[place, :8, 16:24]
            block[:] = 0 if block.mean() > 127 else 255
        frames[at == 3, ::2] ^= 1  # rounding
        return frames

    monkeypatch.setattr(READERS["decord"], "decode_unchecked", damaged)
    with open_reader(path, backend="pyav") as reader:
        sound = reader.read(range(8))
    for together in ([3], [3, 4, 5], [5], [6], [5, 6, 7], range(8)):
        with open_reader(path, backend="decord") as reader:
            for number, frame in zip(together, reader.read(list(together)), strict=True):
                alone = open_reader(path, backend="decord").read([number])[0]
                assert np.array_equal(frame, alone)
                if number in (5, 6):
                    assert np.array_equal(frame, sound[number])
