"""SIGKILL at any moment, inside a write too; `benchmarks/kills.py` does it fifty times."""

import random
import time

import torch

from tests.engine.trained import losses, make_trainer
from tests.engine.worlds import PROCESSES
from vidcsl.engine.checkpoint import load_newest

KILLS = 3


def train(folder):
    torch.set_num_threads(1)
    trainer = make_trainer(
        folder,
        method="moco_v2",
        epochs=4,
        schedule={"checkpoint_steps": 1},
        options={"queue": 9000},
    )
    if checkpoint := load_newest(folder / "checkpoints"):
        trainer.restore(checkpoint)
    trainer.run()


def killed(process, folder, draw, *, inside):
    """Kill it once it has made another checkpoint, if asked inside the write of the next."""

    def written():
        return {path.name for path in (folder / "checkpoints").glob("*.pt")}

    before, deadline = written(), time.monotonic() + 100
    while process.is_alive() and time.monotonic() < deadline:
        half = any((folder / "checkpoints").glob("*.partial"))
        if written() - before and (half or not inside):
            break
    time.sleep(0 if inside else draw.uniform(0, 0.05))
    process.kill()
    process.join()


def test_killed_again_and_again_it_learns_the_same(tmp_path):
    draw = random.Random(0)
    for number in range(KILLS):
        process = PROCESSES.Process(target=train, args=(tmp_path / "killed",))
        process.start()
        killed(process, tmp_path / "killed", draw, inside=number % 2 == 0)
    train(tmp_path / "killed")
    train(tmp_path / "alone")
    found, wanted = losses(tmp_path / "killed"), losses(tmp_path / "alone")
    assert found == wanted
    one, other = (
        load_newest(tmp_path / run / "checkpoints")["method"] for run in ("killed", "alone")
    )
    assert all(torch.equal(one[name], other[name]) for name in other)
