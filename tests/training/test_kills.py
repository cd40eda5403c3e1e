"""SIGKILL at any moment, inside a write too; `benchmarks/kills.py` does it fifty times."""

import random
import signal
import time

import torch

from tests.processes import PROCESSES, run_in_processes, start_processes
from tests.training.trainers import ALONE, losses, make_trainer
from vidcsl.training.checkpoint import list_checkpoints, load_newest
from vidcsl.training.parallel import Strategy

KILLS = 3


def train(folder, *, distributed=ALONE, epochs=4, **rest):
    torch.set_num_threads(1)
    trainer = make_trainer(
        folder,
        distributed=distributed,
        method="moco_v2",
        epochs=epochs,
        schedule={"checkpoint_steps": 1},
        options={"queue": 9000},
        **rest,
    )
    if checkpoint := load_newest(folder / "checkpoints"):
        trainer.restore(checkpoint)
    trainer.run()


def train_sharded(distributed, folder):
    train(folder, distributed=distributed, epochs=2, strategy=Strategy(parallel="fsdp"))


def kill(processes, folder, draw, *, inside):
    """Kill them once they have made another checkpoint, if asked inside the write of the next."""

    def written():
        return {path.name for path in list_checkpoints(folder / "checkpoints")}

    before, deadline = written(), time.monotonic() + 100
    while all(process.is_alive() for process in processes) and time.monotonic() < deadline:
        half = any((folder / "checkpoints").glob("*.partial"))
        if written() - before and (half or not inside):
            break
    time.sleep(0 if inside else draw.uniform(0, 0.05))
    for process in draw.sample(processes, len(processes)):
        process.kill()
    for process in processes:
        process.join()
        assert process.exitcode == -signal.SIGKILL  # and did not end by itself before


def assert_same(folder):
    assert losses(folder / "killed") == losses(folder / "alone")
    one, other = (
        load_newest(folder / run / "checkpoints")["method"] for run in ("killed", "alone")
    )
    assert all(torch.equal(one[name], other[name]) for name in other)


def test_killed_again_and_again_it_learns_the_same(tmp_path):
    draw = random.Random(0)
    for number in range(KILLS):
        process = PROCESSES.Process(target=train, args=(tmp_path / "killed",))
        process.start()
        kill([process], tmp_path / "killed", draw, inside=number % 2 == 0)
    train(tmp_path / "killed")
    train(tmp_path / "alone")
    assert_same(tmp_path)


def test_two_processes_that_shard_a_model_are_killed_and_learn_the_same(tmp_path):
    processes = start_processes(train_sharded, 2, tmp_path / "killed")
    kill(processes, tmp_path / "killed", random.Random(0), inside=True)
    for run in ("killed", "alone"):
        run_in_processes(train_sharded, 2, tmp_path / run)
    assert_same(tmp_path)
