"""The training loop on small runs: steps, roll-backs, background checkpoints, exact resumption."""

import os
import signal
from dataclasses import replace

import pytest
import torch

from tests.methods.made import make_method
from tests.training.trainers import (
    ALONE,
    STEPS,
    VIDEOS,
    batches,
    log_lines,
    losses,
    make_trainer,
)
from vidcsl.errors import Diverged, UserError
from vidcsl.models.encoder import Norms
from vidcsl.training.checkpoint import (
    CheckpointWriter,
    Position,
    list_checkpoints,
    load_checkpoint,
    load_newest,
)
from vidcsl.training.monitor import Interrupted
from vidcsl.training.optimisation import Guard
from vidcsl.training.train import Learner, augmented, train_step


def weights(trainer):
    return {name: w.clone() for name, w in trainer.learner.method.state_dict().items()}


def assert_same(one, other):
    assert set(one) == set(other)
    assert all(torch.equal(one[name], other[name]) for name in one)


def before_each_step(trainer, action):
    """Call `action` before each step that is not left out."""
    augment = trainer.data.augment

    def acting(*arguments):
        action()
        return augment(*arguments)

    trainer.data = replace(trainer.data, augment=acting)


def step(clip):
    """One step of plain gradient descent: its metrics, and how far the weights moved."""
    method = make_method("simclr", distributed=ALONE)
    before = {name: weight.detach().clone() for name, weight in method.named_parameters()}
    learner = Learner(method, torch.optim.SGD(method.parameters()), clip_gradient=clip)
    batch = next(batches(ALONE)(0, 0))
    clips = augmented(batch, lambda frames, *_: frames, seed=0, progress=0.0)
    outputs = train_step(learner, clips, lr=0.5)
    weights = method.named_parameters()
    moved = torch.cat([(weight.detach() - before[name]).flatten() for name, weight in weights])
    return outputs, float(moved.norm()) / 0.5


@pytest.mark.parametrize("ratio", [0.0, 2.0, 0.25])
def test_the_gradient_norm_is_reported_whether_it_is_clipped_or_not(ratio):
    plain, length = step(0.0)
    norm = plain["gradient_norm"]
    assert float(norm.part / norm.whole) == pytest.approx(length, rel=1e-4)
    clipped, moved = step(ratio * length)
    assert float(clipped["gradient_norm"].part) == pytest.approx(length, rel=1e-4)
    assert moved == pytest.approx(min(1.0, ratio or 1.0) * length, rel=1e-4)


def test_a_loss_that_is_not_finite_is_rolled_back(tmp_path, capsys):
    """The run continues as one does that leaves out the bad step from the start."""
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
    """The loss of a step is measured before its update, which breaks the weights here."""
    trainer = make_trainer(tmp_path, guard=Guard(rollbacks=1, skip=2))
    method, broken = trainer.learner.method, []

    def break_a_weight(_progress):
        if trainer.global_step == 2 * STEPS - 1 and not broken:
            broken.append(True)
            next(method.parameters()).data.view(-1)[0] = torch.nan

    method.after_step = break_a_weight
    trainer.run()
    (line,) = log_lines(tmp_path, "rollback")
    assert line["reason"] == "the weights are not finite"
    assert (line["to"], line["left_out"]) == (STEPS, [2 * STEPS - 1, 2 * STEPS])
    for path in list_checkpoints(tmp_path / "checkpoints"):
        stored = load_checkpoint(path)["method"].values()
        assert all(weight.isfinite().all() for weight in stored)


def test_a_resumed_run_reports_the_time_of_all_of_it(tmp_path):
    trainer = make_trainer(tmp_path, epochs=2)
    first = trainer.run()
    assert first["seconds"] > 0
    again = make_trainer(tmp_path, epochs=3)
    again.restore(load_newest(tmp_path / "checkpoints"))
    spent = load_newest(tmp_path / "checkpoints")["cost"][0]
    assert 0 < spent <= first["seconds"]
    last = again.run()
    assert last["seconds"] > spent
    assert last["seconds"] * last["clips_per_second"] == pytest.approx(3 * STEPS * VIDEOS * 2)
    over = make_trainer(tmp_path, epochs=3)
    over.restore(load_newest(tmp_path / "checkpoints"))
    found = over.run()
    assert {name: found[name] for name in ("loss", "by_class")} == {
        name: last[name] for name in ("loss", "by_class")
    }


def test_a_signal_after_the_last_step_ends_the_run(tmp_path):
    class SignallingWriter(CheckpointWriter):
        def save(self, state, position):
            super().save(state, position)
            os.kill(os.getpid(), signal.SIGTERM)

    writer = SignallingWriter(tmp_path / "checkpoints", ALONE)
    with pytest.raises(Interrupted):
        make_trainer(tmp_path, epochs=1, writer=writer).run()
    assert load_newest(tmp_path / "checkpoints")["position"] == {"epoch": 1, "step": 0}


def test_a_killed_roll_back_is_repeated_exactly(tmp_path):
    whole = make_trainer(tmp_path / "whole", hurt=(6,), guard=Guard(rollbacks=1))
    whole.run()
    first = make_trainer(tmp_path / "killed", hurt=(6,), guard=Guard(rollbacks=1), epochs=1)
    first.schedule = whole.schedule

    def kill():
        if first.guard.done and first.position == Position(1, 1):
            raise KeyboardInterrupt

    before_each_step(first, kill)
    with pytest.raises(KeyboardInterrupt):
        first.run()
    second = make_trainer(tmp_path / "killed", hurt=(6,), guard=Guard(rollbacks=1))
    second.restore(load_newest(tmp_path / "killed/checkpoints"))
    second.run()
    assert losses(tmp_path / "whole") == losses(tmp_path / "killed")
    assert_same(weights(whole), weights(second))


@pytest.mark.parametrize("background", [True, False])
def test_resuming_is_exact_with_checkpoints_in_the_background_or_not(tmp_path, background):
    whole = make_trainer(tmp_path / "whole")
    whole.run()
    for stop in (Position(0, 2), Position(1, 3)):
        folder = tmp_path / f"stopped{stop.epoch}"
        writer = CheckpointWriter(folder / "checkpoints", ALONE, background=background)
        first = make_trainer(folder, writer=writer, schedule={"checkpoint_steps": 1})

        def interrupt(trainer=first, stop=stop):
            if trainer.position == stop:
                os.kill(os.getpid(), signal.SIGTERM)

        before_each_step(first, interrupt)
        with pytest.raises(Interrupted):
            first.run()
        second = make_trainer(folder)
        second.restore(load_newest(folder / "checkpoints"))
        second.run()
        assert_same(weights(second), weights(whole))
        assert losses(folder) == losses(tmp_path / "whole")


def test_a_checkpoint_holds_the_weights_of_the_moment_it_was_saved(tmp_path):
    writer = CheckpointWriter(tmp_path, ALONE)
    weight = torch.zeros(100_000)
    for number in range(1, 4):
        writer.save({"config": "", "method": {"w": weight}}, Position(number, 0))
        weight += 1  # training goes on
    writer.wait()
    assert load_newest(tmp_path)["method"]["w"].eq(2).all()
    writer.close()


def test_a_failed_write_ends_the_run_and_leaves_the_older_checkpoint(tmp_path, monkeypatch):
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


def test_scores_are_logged_at_their_epochs_and_change_nothing(tmp_path, capsys):
    called = []

    def score():
        called.append(trainer.position.epoch)
        trainer.learner.method.eval()
        torch.rand(3)
        return {"rankme": 2.0}, "RankMe 2.0"

    plain = make_trainer(tmp_path / "plain", epochs=5)
    plain.run()
    trainer = make_trainer(tmp_path / "scored", epochs=5, schedule={"score_every": 2})
    trainer.score = score
    trainer.run()
    assert called == [2, 4, 5]  # and after the last one
    lines = log_lines(tmp_path / "scored", "scores")
    assert [(line["epoch"], line["rankme"]) for line in lines] == [(2, 2), (4, 2), (5, 2)]
    assert "epoch 4 of 5: RankMe 2.0" in capsys.readouterr().err
    assert losses(tmp_path / "scored") == losses(tmp_path / "plain")


class Alike(torch.nn.Module):
    """Hardly tells one clip from another."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(16))

    def forward(self, clips):
        return (1e-3 * clips.flatten(1)[:, :16] + 1) * self.weight


def test_a_collapse_is_named_once_after_two_epochs(tmp_path, capsys):
    options = {"norms": Norms(hidden=False, last=False)}
    trainer = make_trainer(tmp_path, method="byol", encoder=Alike, epochs=4, options=options)
    trainer.run()
    said = capsys.readouterr().err
    assert said.count("training has collapsed") == 1
    assert "since epoch 1 " in said
    (note,) = log_lines(tmp_path, "note")
    assert note["epoch"] == 2
    make_trainer(tmp_path / "sound", epochs=4).run()
    assert "collapsed" not in capsys.readouterr().err
