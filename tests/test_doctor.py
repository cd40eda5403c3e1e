import sys

import av
import numpy as np
import pytest
import torch

from vidcsl import doctor
from vidcsl.cli import main
from vidcsl.data.readers import READERS
from vidcsl.robustness.corruptions import codec, corrupt, names


def test_it_names_what_is_there(capsys):
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"  ok      torch  {torch.__version__.split('+')[0]}" in [x.split("+")[0] for x in lines]
    assert "  ok      pyav" in lines
    start = lines.index("readers") + 1
    readers = [name for name in READERS if name != "auto"]
    assert [line.split()[1] for line in lines[start : start + len(readers)]] == readers
    assert any("cpu" in line and "cores" in line for line in lines)


def test_a_missing_encoder_is_listed_with_who_needs_it(monkeypatch):
    real = av.Codec

    def lacking(name, mode):
        if name == "libx265":
            raise ValueError(name)
        return real(name, mode)

    monkeypatch.setattr(doctor.av, "Codec", lacking)
    missing = [each for each in doctor.examine() if "codecs" in each.topic and not each.there]
    assert [each.name for each in missing] == ["encoder libx265"]
    assert "C/h265" in missing[0].words
    assert "missing encoder libx265" in doctor.report(missing)


def test_a_reader_that_cannot_be_imported_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "decord", None)
    readers = {each.name: each.there for each in doctor.examine() if each.topic == "readers"}
    assert readers["pyav"]
    assert not readers["decord"]


def test_a_reader_whose_library_does_not_load_is_missing(monkeypatch):
    """As torchcodec without FFmpeg: the package imports, and reading fails."""

    def reader(source, **_):
        raise RuntimeError("Could not load libtorchcodec. Likely causes: FFmpeg is not installed")

    monkeypatch.setitem(READERS, "decord", reader)
    found = {each.name: each for each in doctor.examine() if each.topic == "readers"}
    assert found["pyav"].there
    assert found["pictures"].there
    assert not found["decord"].there
    assert "Could not load libtorchcodec" in found["decord"].words


@pytest.mark.parametrize("name", names())
def test_who_needs_which_encoder(name, monkeypatch):
    used = set()
    real = codec.open_codec
    add_stream = av.container.OutputContainer.add_stream
    monkeypatch.setattr(
        codec, "open_codec", lambda n, m: (used.add(n) if m == "w" else None) or real(n, m)
    )
    if name == "C/packet_loss":  # its encoder is opened by the container
        assert callable(add_stream)
        used.add("libx264")
    clips = torch.from_numpy(np.full((1, 3, 2, 16, 16), 0.5, np.float32))
    corrupt(clips, name, severity=1, seeds=[0])
    assert used == {encoder for encoder, who in codec.USED_BY.items() if name in who}
