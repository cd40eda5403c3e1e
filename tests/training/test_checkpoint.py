import os
import resource
import signal

import pytest
import torch

from vidcsl.errors import UserError
from vidcsl.training.checkpoint import (
    Position,
    list_checkpoints,
    load_checkpoint,
    load_newest,
    save_checkpoint,
)


def state(value=0.0):
    return {"config": "SEED: 0\n", "method": {"weight": torch.full((4,), value)}}


def test_the_newest_checkpoints_stay_and_load_as_they_were_saved(tmp_path):
    positions = [Position(0, 3), Position(1, 0), Position(2, 0), Position(10, 0)]
    for number, position in enumerate(positions):
        save_checkpoint(tmp_path, state(number), position, keep=2)
    assert [path.name for path in list_checkpoints(tmp_path)] == [
        "epoch00002_step000000.pt",
        "epoch00010_step000000.pt",
    ]
    newest = load_newest(tmp_path)
    assert newest["position"] == {"epoch": 10, "step": 0}
    assert torch.equal(newest["method"]["weight"], torch.full((4,), 3.0))


def test_a_damaged_newest_falls_back_to_the_one_before(tmp_path):
    save_checkpoint(tmp_path, state(1), Position(1, 0), keep=3)
    newest = save_checkpoint(tmp_path, state(2), Position(2, 0), keep=3)
    newest.write_bytes(newest.read_bytes()[:100])
    assert load_newest(tmp_path)["position"] == {"epoch": 1, "step": 0}
    for path in list_checkpoints(tmp_path):
        path.write_bytes(b"")
    with pytest.raises(UserError, match="cannot load checkpoint"):
        load_newest(tmp_path)
    assert load_newest(tmp_path / "none") is None


class Trap:
    def __reduce__(self):
        return os.system, ("touch trapped",)


def test_code_in_a_checkpoint_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({**state(), "position": Trap()}, tmp_path / "trap.pt")
    with pytest.raises(UserError, match=r"trap\.pt"):
        load_checkpoint(tmp_path / "trap.pt")
    assert not (tmp_path / "trapped").exists()


def test_files_that_are_no_checkpoints_are_named_in_the_error(tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "foreign.pt")
    with pytest.raises(UserError, match="not a vidcsl checkpoint"):
        load_checkpoint(tmp_path / "foreign.pt")
    with pytest.raises(UserError, match="no checkpoint at"):
        load_checkpoint(tmp_path / "missing.pt")


def test_a_full_disk_keeps_the_older_checkpoint(tmp_path):
    save_checkpoint(tmp_path, state(1), Position(1, 0), keep=2)
    big = {**state(), "ballast": torch.zeros(1_000_000)}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(UserError, match="cannot write checkpoint"):
            save_checkpoint(tmp_path, big, Position(2, 0), keep=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert [path.name for path in tmp_path.iterdir()] == ["epoch00001_step000000.pt"]
    assert load_newest(tmp_path)["position"]["epoch"] == 1


def test_a_flipped_bit_is_found_and_reported(tmp_path, capsys):
    """In the values of a tensor, where torch itself sees nothing wrong."""
    save_checkpoint(tmp_path, state(1), Position(1, 0), keep=3)
    newest = save_checkpoint(tmp_path, state(2.0), Position(2, 0), keep=3)
    content = bytearray(newest.read_bytes())
    content[content.index(torch.full((4,), 2.0).numpy().tobytes())] ^= 1
    newest.write_bytes(content)
    torch.load(newest, weights_only=True)
    assert load_newest(tmp_path)["position"] == {"epoch": 1, "step": 0}
    said = capsys.readouterr().err
    assert "its checksum is not that" in said
    assert "the one before is used: epoch00001_step000000.pt" in said
