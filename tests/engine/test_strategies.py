"""Every strategy trains as the plain path does."""

import pytest
import torch
from torch import nn

from tests.engine.trained import STEPS, losses, make_trainer
from tests.engine.worlds import run_in_world
from vidcsl.engine.checkpoint import list_checkpoints, load_checkpoint, load_newest
from vidcsl.engine.strategies import Strategy

FSDP = Strategy(parallel="fsdp")


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(9), nn.Linear(9, 9)

    def forward(self, rows):
        return rows + self.linear(self.norm(rows)).relu()


class Encoder(nn.Module):
    """Blocks as a transformer has them, of a width that two processes cannot share evenly."""

    feature_dim = 9

    def __init__(self):
        super().__init__()
        self.stem, self.blocks = nn.Linear(96, 9), nn.Sequential(Block(), Block())

    def forward(self, clips):
        return self.blocks(self.stem(clips.flatten(1)))


def run(folder, *, encoder=Encoder, epochs=2, resume=None, **options):
    """Losses by step, and the weights in the end."""
    trainer = make_trainer(folder, encoder=encoder, epochs=epochs, double=True, **options)
    if resume:
        trainer.restore(load_checkpoint(resume))
    trainer.run()
    return losses(folder), trainer.stepper.method.state_dict()


def assert_close(one, other):
    """Of trainings: the same but for the order of sums."""
    assert one[0] == pytest.approx({step: other[0][step] for step in one[0]}, rel=1e-6)
    for name, wanted in other[1].items():
        torch.testing.assert_close(one[1][name], wanted, rtol=1e-4, atol=1e-6)


def first_epoch(folder):
    return next(path for path in list_checkpoints(folder / "checkpoints") if "00001" in path.name)


def sharded(world, folder):
    run(folder / "moco_v2", world=world, method="moco_v2", strategy=FSDP)
    run(folder / "swav", world=world, method="swav", strategy=FSDP, epochs=1)
    from_one = first_epoch(folder / "plain")
    run(folder / "from_one", world=world, method="moco_v2", strategy=FSDP, resume=from_one)


def test_fsdp_trains_as_one_process_and_its_checkpoints_fit_any_number(tmp_path, capsys):
    plain = run(tmp_path / "plain", method="moco_v2")
    run_in_world(sharded, 2, tmp_path)
    for name in ("moco_v2", "from_one"):
        newest = tmp_path / name / "checkpoints/epoch00002_step000000.pieces"
        assert_close((losses(tmp_path / name), load_checkpoint(newest)["method"]), plain)
    wanted = run(tmp_path / "swav_alone", method="swav", epochs=1)
    found = load_newest(tmp_path / "swav/checkpoints")["method"]
    assert_close((losses(tmp_path / "swav"), found), wanted)

    pieces = first_epoch(tmp_path / "moco_v2")
    assert len(list(pieces.glob("*.distcp"))) == 2
    resumed = run(tmp_path / "to_one", method="moco_v2", resume=pieces)
    assert min(resumed[0]) == STEPS + 1
    assert_close(resumed, plain)

    newest = tmp_path / "moco_v2/checkpoints/epoch00002_step000000.pieces"
    damaged = next(newest.glob("__1_*.distcp"))
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    capsys.readouterr()
    assert load_newest(newest.parent)["position"] == {"epoch": 1, "step": 0}
    said = capsys.readouterr().err
    assert f"{damaged.name} is damaged" in said
    assert f"the one before is taken: {pieces.name}" in said
