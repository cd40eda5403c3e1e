"""Steps that diverged: kept, and repeated under watch."""

import json

import pytest
import torch
from torch import nn

from tests.training.trainers import STEPS, make_trainer
from vidcsl.errors import Diverged, UserError
from vidcsl.training.checkpoint import keep_step, load_checkpoint, read_step
from vidcsl.training.optimisation import Guard
from vidcsl.training.replay import in_words, replay

BAD = STEPS + 2  # in the second epoch


def diverged(folder, **options):
    """A run that ends at the step BAD, after one checkpoint."""
    trainer = make_trainer(folder, **options)
    with pytest.raises(Diverged):
        trainer.run()
    return read_step(folder / f"replay/step{BAD:06}.json")


def test_clips_that_are_not_finite_are_found_again(tmp_path, capsys):
    kept = diverged(tmp_path / "run", hurt=[BAD])
    assert kept.step == BAD
    assert "not finite" in kept.reason
    said = capsys.readouterr().err
    assert f"vidcsl replay {tmp_path / 'run'}/replay/step{BAD:06}.json" in said
    again = make_trainer(tmp_path / "again", hurt=[BAD])
    again.restore(load_checkpoint(kept.checkpoint))
    found = replay(again, step=kept.step, shown=False)
    assert len(found.clips) == 1
    assert found.clips[0] in found.videos
    assert "inputs are not finite" in found.outputs[0]
    assert found.error
    names = [f"v{number}.mp4" for number in found.videos]
    assert in_words(found, names=names)[0] == f"clips that are not finite: v{found.clips[0]}.mp4"


class Overflows(nn.Module):
    """Its second layer divides by 0 in one batch, that of the largest pixel."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3 * 2 * 4 * 4, 16)
        self.broken = Division()

    def forward(self, clips):
        return self.broken(self.first(clips.flatten(1)), clips)


class Division(nn.Module):
    def forward(self, features, clips):
        return features / (clips.flatten(1).amax(dim=1, keepdim=True) < 1.5)


def test_the_module_that_broke_is_named(tmp_path):
    def hurt(trainer):
        of_epoch = trainer.data.batches

        def batches(epoch, first):
            for step, batch in enumerate(of_epoch(epoch, first), start=first):
                if epoch * STEPS + step == BAD:
                    batch.frames[0, 0] = 2
                yield batch

        object.__setattr__(trainer.data, "batches", batches)
        return trainer

    trainer = hurt(make_trainer(tmp_path / "run", encoder=Overflows))
    with pytest.raises(Diverged):
        trainer.run()
    kept = read_step(tmp_path / f"run/replay/step{BAD:06}.json")
    again = hurt(make_trainer(tmp_path / "again", encoder=Overflows))
    again.restore(load_checkpoint(kept.checkpoint))
    found = replay(again, step=kept.step, shown=False)
    assert found.outputs[0] == "encoder.broken (Division), its inputs are finite"
    assert not found.clips


class NoGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, features):
        return features.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * torch.nan


class BreaksGradients(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3 * 2 * 4 * 4, 16)
        self.last = nn.ReLU()

    def forward(self, clips):
        return self.last(NoGradient.apply(self.first(clips.flatten(1))))


def test_a_gradient_and_weights_that_break_are_named(tmp_path):
    trainer = make_trainer(tmp_path, encoder=BreaksGradients)
    found = replay(trainer, step=0, shown=False)
    assert not found.outputs
    assert found.gradients[0] == "encoder.first (Linear)"
    assert "encoder.first.weight" in found.weights
    lines = in_words(found, names=[str(number) for number in found.videos])
    assert lines[0].startswith("first gradient that is not finite: of encoder.first (Linear)")
    with pytest.raises(UserError, match="step 0 diverges before step 1 is reached"):
        replay(trainer, step=1, shown=False)
    found = replay(trainer, step=0, shown=False)
    assert "encoder.first.weight" in found.broken_before
    assert "an earlier one broke them" in in_words(found, names=["v"] * len(found.videos))[0]


def test_a_sound_step_is_said_to_be_one_and_equals_that_of_the_run(tmp_path):
    trained = make_trainer(tmp_path / "run", epochs=2)
    trained.run()
    logged = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    losses = {line["step"]: line["loss"] for line in logged if line["kind"] == "train"}
    found = replay(make_trainer(tmp_path / "again", epochs=2), step=BAD, shown=False)
    assert found.loss == losses[BAD + 1]
    lines = in_words(found, names=[str(number) for number in found.videos])
    assert "everything was finite in this step" in lines


def test_a_jump_of_the_loss_is_kept_too_and_the_run_goes_on(tmp_path):
    trainer = make_trainer(tmp_path, hurt=[BAD], guard=Guard(rollbacks=1))
    trainer.run()
    assert [path.name for path in sorted((tmp_path / "replay").iterdir())] == [
        f"step{BAD:06}.json",
        f"step{BAD:06}.pt",
    ]


def test_only_the_newest_steps_are_kept(tmp_path):
    trainer = make_trainer(tmp_path, epochs=1)
    trainer.run()
    folder = trainer.output.folder
    for step in range(4):
        path = keep_step(folder, step=step, reason="made up", config="")
        assert read_step(path).checkpoint.exists()
    names = {path.name for path in (tmp_path / "replay").iterdir()}
    assert names == {f"step00000{step}.{kind}" for step in (2, 3) for kind in ("json", "pt")}


def test_without_a_checkpoint_the_start_is_repeated(tmp_path):
    trainer = make_trainer(tmp_path, hurt=[1])
    with pytest.raises(Diverged, match="roll-backs"):
        trainer.run()
    assert read_step(tmp_path / "replay/step000001.json").checkpoint is None


@pytest.mark.parametrize("text", ["{", "{}", '{"step": "x", "checkpoint": null}'])
def test_files_that_are_no_kept_steps(tmp_path, text):
    path = tmp_path / "step.json"
    with pytest.raises(UserError, match="no kept step"):
        read_step(path)
    path.write_text(text)
    with pytest.raises(UserError, match="is not a kept step"):
        read_step(path)


def test_steps_that_cannot_be_repeated(tmp_path):
    with pytest.raises(UserError, match="not among the steps 0 to 11"):
        replay(make_trainer(tmp_path), step=12, shown=False)
