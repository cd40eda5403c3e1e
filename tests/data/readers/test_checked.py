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
