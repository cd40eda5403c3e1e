"""The trainer on small trainings: roll-backs, background checkpoints, exact resumption."""

import os
import signal

import pytest
import torch

from tests.training.trained import ALONE, STEPS, VIDEOS, log_lines, losses, make_trainer
from vidcsl.errors import Diverged, UserError
from vidcsl.training.checkpoint import (
    CheckpointWriter,
    Position,
    list_checkpoints,
    load_checkpoint,
    load_newest,
)
from vidcsl.training.monitor import Interrupted
from vidcsl.training.optimisation import Guard


def weights(trainer):
    return {name: w.clone() for name, w in trainer.stepper.method.state_dict().items()}


def assert_same(one, other):
    assert set(one) == set(other)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_loss_that_is_not_finite_is_left_behind(tmp_path, capsys):
    """Set back to the checkpoint before, the training goes round the bad step: as if it knew."""
    trainer = make_trainer(tmp_path, hurt=(6,), guard=Guard(rollbacks=1, skip=1))
    trainer.run()
    (line,) = log_lines(tmp_path, "rollback")
    assert (line["step"], line["to"], line["left_out"]) == (7, STEPS, [6])
    assert "not finite" in line["reason"]
    said = capsys.readouterr().err
    assert "at step 7: back to step 4" in said
    assert "roll-back 1 of at most 1" in said
    knowing = Guard()
    knowing.left_out = {6}
    other = make_trainer(tmp_path / "other", hurt=(6,), guard=knowing)
    other.run()
    assert_same(weights(trainer), weights(other))
    assert all(torch.isfinite(w).all() for w in weights(trainer).values())


def test_roll_backs_are_bounded(tmp_path):
    trainer = make_trainer(tmp_path, hurt=(6, 8), guard=Guard(rollbacks=1, skip=1))
    with pytest.raises(Diverged, match=r"at step 9, after 1 of at most 1 roll-backs.*TRAIN\.LR"):
        trainer.run()
    assert load_newest(tmp_path / "checkpoints")["position"] == {"epoch": 2, "step": 0}
    with pytest.raises(Diverged, match="at step 3, before the first checkpoint"):
        make_trainer(tmp_path / "early", hurt=(2,), guard=Guard(rollbacks=5)).run()


def test_weights_that_are_not_finite_are_never_written(tmp_path):
    """The loss of a step was told before its gradient broke the weights, at the end of an epoch."""
    trainer = make_trainer(tmp_path, guard=Guard(rollbacks=1, skip=2))
    learn, broken = trainer._learn, []

    def breaking(batch):
        outputs = learn(batch)
        if trainer._global_step == 2 * STEPS - 1 and not broken:
            broken.append(True)
            next(trainer.stepper.method.parameters()).data.view(-1)[0] = torch.nan
        return outputs

    trainer._learn = breaking
    trainer.run()
    (line,) = log_lines(tmp_path, "rollback")
    assert line["reason"] == "the weights are not finite"
    assert (line["to"], line["left_out"]) == (STEPS, [2 * STEPS - 1, 2 * STEPS])
    for path in list_checkpoints(tmp_path / "checkpoints"):
        stored = load_checkpoint(path)["method"].values()
        assert all(weight.isfinite().all() for weight in stored)


def test_a_training_that_went_on_tells_what_all_of_it_took(tmp_path):
    trainer = make_trainer(tmp_path, epochs=2)
    first = trainer.run()
    assert first["seconds"] > 0
    again = make_trainer(tmp_path, epochs=3)
    again.restore(load_newest(tmp_path / "checkpoints"))
    spent = again._seconds
    assert 0 < spent <= first["seconds"]
    last = again.run()
    assert last["seconds"] > spent
    assert last["seconds"] * last["clips_per_second"] == pytest.approx(3 * STEPS * VIDEOS * 2)
    over = make_trainer(tmp_path, epochs=3)
    over.restore(load_newest(tmp_path / "checkpoints"))
    told = over.run()
    assert {name: told[name] for name in ("loss", "by_class")} == {
        name: last[name] for name in ("loss", "by_class")
    }


def test_a_signal_after_the_last_step_is_heard(tmp_path):
    trainer = make_trainer(tmp_path, epochs=1)
    finish = trainer._finish_epoch

    def signalled(log):
        finish(log)
        os.kill(os.getpid(), signal.SIGTERM)

    trainer._finish_epoch = signalled
    with pytest.raises(Interrupted):
        trainer.run()
    assert load_newest(tmp_path / "checkpoints")["position"] == {"epoch": 1, "step": 0}


def test_a_killed_roll_back_is_repeated_exactly(tmp_path):
    whole = make_trainer(tmp_path / "whole", hurt=(6,), guard=Guard(rollbacks=1))
    whole.run()
    first = make_trainer(tmp_path / "killed", hurt=(6,), guard=Guard(rollbacks=1), epochs=1)
    first.schedule = whole.schedule
    learn = first._learn

    def killed(batch):
        if first.guard.done and first.position == Position(1, 1):
            raise KeyboardInterrupt
        return learn(batch)

    first._learn = killed
    with pytest.raises(KeyboardInterrupt):
        first.run()
    second = make_trainer(tmp_path / "killed", hurt=(6,), guard=Guard(rollbacks=1))
    second.restore(load_newest(tmp_path / "killed/checkpoints"))
    second.run()
    assert losses(tmp_path / "whole") == losses(tmp_path / "killed")
    assert_same(weights(whole), weights(second))


def test_a_spike_is_told_from_what_came_before():
    guard = Guard(spike=5.0)
    generator = torch.Generator().manual_seed(0)
    for value in (4 + 0.1 * torch.randn(60, generator=generator)).tolist():
        guard.check(value)
    guard.check(4.3)
    fresh = Guard(spike=5.0)
    fresh.load(guard.state())
    for each in (guard, fresh):
        with pytest.raises(Diverged, match="leapt to 5"):
            each.check(5.0)
    Guard(spike=5.0).check(1e9)  # nothing to hold it against yet
    steady = Guard(spike=5.0)
    for _ in range(50):
        steady.check(2.0)
    steady.check(2.05)
    with pytest.raises(Diverged):
        steady.check(2.5)


@pytest.mark.parametrize("background", [True, False])
def test_resumption_is_exact_whoever_writes(tmp_path, background):
    whole = make_trainer(tmp_path / "whole")
    whole.run()
    for stop in (Position(0, 2), Position(1, 3)):
        folder = tmp_path / f"stopped{stop.epoch}"
        writer = CheckpointWriter(folder / "checkpoints", ALONE, background=background)
        first = make_trainer(folder, writer=writer, schedule={"checkpoint_steps": 1})
        learn = first._learn

        def interrupted(batch, trainer=first, learn=learn, stop=stop):
            if trainer.position == stop:
                os.kill(os.getpid(), signal.SIGTERM)
            return learn(batch)

        first._learn = interrupted
        with pytest.raises(Interrupted):
            first.run()
        second = make_trainer(folder)
        second.restore(load_newest(folder / "checkpoints"))
        second.run()
        assert_same(weights(second), weights(whole))
        assert losses(folder) == losses(tmp_path / "whole")


def test_what_is_written_is_what_was_there_when_it_was_saved(tmp_path):
    writer = CheckpointWriter(tmp_path, ALONE)
    weight = torch.zeros(100_000)
    for number in range(1, 4):
        writer.save({"config": "", "method": {"w": weight}}, Position(number, 0))
        weight += 1  # training goes on
    writer.wait()
    assert load_newest(tmp_path)["method"]["w"].eq(2).all()
    writer.close()


def test_a_failed_write_ends_the_training_and_leaves_the_older_checkpoint(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path)
    write, calls = torch.save, []

    def full(document, file):
        calls.append(document["position"])
        if len(calls) > 1:
            file.write(b"half of it")
            raise OSError(28, "No space left on device")
        write(document, file)

    monkeypatch.setattr("vidcsl.training.checkpoint.torch.save", full)
    with pytest.raises(UserError, match=r"cannot write.*No space left on device.*--resume"):
        trainer.run()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [
        "epoch00001_step000000.pt"
    ]
    assert max(losses(tmp_path)) < 3 * STEPS  # noticed while training went on, not at its end


def test_retention_keeps_the_newest_and_every_so_many_epochs(tmp_path):
    writer = CheckpointWriter(tmp_path / "checkpoints", ALONE, keep=2, keep_every=3)
    make_trainer(tmp_path, epochs=8, writer=writer, schedule={"checkpoint_steps": 3}).run()
    kept = [path.stem for path in list_checkpoints(tmp_path / "checkpoints")]
    wanted = ["epoch00003_step000000", "epoch00006_step000000"]
    assert kept == [*wanted, "epoch00007_step000003", "epoch00008_step000000"]
