import pytest
import torch

from tests.tiny_job import arguments, fails, losses, newest, results_of, stop_after, weights
from vidcsl.cli import main

WORDS = ("FALSE_NEGATIVES.DETECTOR", "memory", "FALSE_NEGATIVES.CEILING", 0.3)
WORDS += ("FALSE_NEGATIVES.START", 0.6, "FALSE_NEGATIVES.RAMP", 0, "DATA.TEST_LIST", "")
ROUNDS = (*WORDS, "FALSE_NEGATIVES.ROUNDS", 2)


@pytest.fixture(scope="module")
def whole(data, config, tmp_path_factory):
    out = tmp_path_factory.mktemp("rounds") / "run"
    assert main(["train", *arguments(data, config, out, *ROUNDS)]) == 0
    return out


def test_the_first_is_a_training_as_any_and_judges_the_second(data, config, whole, tmp_path):
    alone = tmp_path / "alone"
    assert main(["train", *arguments(data, config, alone, *WORDS)]) == 0
    first = whole / "rounds/1"
    assert losses(first) == losses(alone)
    assert losses(whole)[1] != losses(first)[1]  # judged from its first step on
    memory = weights(first)["detector.memory"]
    assert torch.equal(weights(whole)["detector.earlier_memory"], memory)
    seconds = results_of(whole)["cost"]["seconds"]
    earlier = results_of(first)["cost"]["seconds"]["pretraining"]
    assert seconds["earlier rounds"] == earlier > 0


@pytest.mark.parametrize("steps", [4, 8], ids=["in the first", "in the second"])
def test_a_stop_in_any_round_changes_nothing(
    data,
    config,
    whole,
    tmp_path,
    monkeypatch,
    capsys,
    steps,
):
    out = tmp_path / "stopped"
    words = arguments(data, config, out, *ROUNDS)
    stop_after(steps, monkeypatch, words)
    assert "already holds a run" in fails(capsys, "train", *words)
    changed = [*words, "TRAIN.LR", "0.5", "--resume"]
    assert "TRAIN.LR changed since it was started" in fails(capsys, "train", *changed)
    assert main(["train", *words, "--resume"]) == 0
    assert losses(out) == losses(whole)
    one, other = weights(out), weights(whole)
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_earlier_rounds_by_another_method(data, config, whole, tmp_path, capsys):
    out, told = tmp_path / "run", tmp_path / "told"
    acl = ("METHOD.NAME", "acl", "ADVERSARIAL.STEPS", 1)
    words = (*ROUNDS, *acl, "FALSE_NEGATIVES.ROUNDS_METHOD", "simclr")
    assert main(["train", *arguments(data, config, out, *words)]) == 0
    assert losses(out / "rounds/1") == losses(whole / "rounds/1")
    words = (*WORDS, *acl, "FALSE_NEGATIVES.TUTOR", newest(out / "rounds/1"))
    assert main(["train", *arguments(data, config, told, *words)]) == 0
    assert losses(out) == losses(told)
    for more, message in {
        (*WORDS, "FALSE_NEGATIVES.ROUNDS_METHOD", "simclr"): "needs FALSE_NEGATIVES.ROUNDS above",
        (*ROUNDS, "FALSE_NEGATIVES.ROUNDS_METHOD", "byol"): "byol has no negatives",
    }.items():
        assert message in fails(capsys, "train", *arguments(data, config, tmp_path / "x", *more))


def test_a_tutor_is_another_training(data, config, whole, tmp_path, capsys):
    told = tmp_path / "told"
    words = (*WORDS, "FALSE_NEGATIVES.TUTOR", newest(whole / "rounds/1"))
    assert main(["train", *arguments(data, config, told, *words)]) == 0
    assert losses(told) == losses(whole)  # as the second round was
    longer = arguments(data, config, tmp_path / "c", *words, "METHOD.PROJECTOR_DIM", 5)
    assert "give the same list and METHOD.PROJECTOR_DIM" in fails(capsys, "train", *longer)


def test_a_tutor_that_knows_nothing_of_these_videos(data, config, whole, tmp_path, capsys):
    blank, renamed = tmp_path / "blank", data / "renamed.csv"
    assert main(["train", *arguments(data, config, blank, "DATA.TEST_LIST", "")]) == 0
    words = (*WORDS, "FALSE_NEGATIVES.TUTOR", newest(blank))
    words = arguments(data, config, tmp_path / "run", *words)
    assert "has no memory bank: train it with" in fails(capsys, "train", *words)
    renamed.write_text((data / "train.csv").read_text())
    words = (*WORDS, "FALSE_NEGATIVES.TUTOR", newest(whole), "DATA.TRAIN_LIST", renamed)
    said = fails(capsys, "train", *arguments(data, config, tmp_path / "run", *words))
    assert "was trained on another list of videos" in said


def test_only_a_detector_that_remembers_has_rounds(data, config, tmp_path, capsys):
    words = ("FALSE_NEGATIVES.DETECTOR", "adaptive", "FALSE_NEGATIVES.ROUNDS", 2)
    said = fails(capsys, "train", *arguments(data, config, tmp_path / "run", *words))
    assert "ROUNDS above 1 and .TUTOR need FALSE_NEGATIVES.DETECTOR memory" in said
