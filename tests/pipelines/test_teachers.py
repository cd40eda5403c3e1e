"""`vidcsl train` and `vidcsl neighbours` with a teacher, from the command line."""

import json
import shutil

import numpy as np
import pytest
import torch

from tests.tiny_job import arguments, fails, losses, results_of, stop_after, weights
from vidcsl.cli import main
from vidcsl.config import default_config, load_config, overridden
from vidcsl.data.lists import read_rows
from vidcsl.pipelines.model import build_encoder
from vidcsl.pipelines.teachers import teacher_weights

TEACHER = ("FALSE_NEGATIVES.DETECTOR", "teacher", "DATA.TEST_LIST", "")
LABELS = ("FALSE_NEGATIVES.DETECTOR", "labels", "DATA.TEST_LIST", "")


@pytest.fixture(scope="module")
def perfect(data, tmp_path_factory):
    """Features that give the classes away, as a user's may."""
    rows = read_rows(data / "train.csv")
    names = sorted({row.class_name for row in rows})
    path = tmp_path_factory.mktemp("features") / "classes.npz"
    np.savez(path, **{row.video: np.eye(len(names))[names.index(row.class_name)] for row in rows})
    return path


def of_features(path, *more):
    rule = ("FALSE_NEGATIVES.RULE", "mutual", "FALSE_NEGATIVES.CEILING", 0.1)
    return (*TEACHER, "FALSE_NEGATIVES.TEACHER", path, *rule, *more)


def test_features_that_know_the_classes_are_the_label_oracle(data, config, perfect, tmp_path):
    taught, oracle = tmp_path / "taught", tmp_path / "oracle"
    assert main(["train", *arguments(data, config, taught, *of_features(perfect))]) == 0
    assert main(["train", *arguments(data, config, oracle, *LABELS)]) == 0
    assert losses(taught) == losses(oracle)
    found = results_of(taught)["false_negatives"]
    assert found["precision"] == found["recall"] == 1
    assert found["teacher"] == str(perfect)


def test_motion_flags_pairs_and_a_stop_changes_nothing(data, config, tmp_path, monkeypatch, capsys):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    more = (*TEACHER, "FALSE_NEGATIVES.RULE", "share", "FALSE_NEGATIVES.CEILING", 0.3)
    more += ("DATA.CACHE", tmp_path / "cache")
    assert main(["train", *arguments(data, config, whole, *more)]) == 0
    assert results_of(whole)["false_negatives"]["removed"] > 0.1
    words = arguments(data, config, stopped, *more)
    stop_after(4, monkeypatch, words)
    assert main(["train", *words, "--resume"]) == 0
    assert losses(stopped) == losses(whole)
    assert "motion of the videos" in capsys.readouterr().err  # computed by the first alone
    assert len(list((tmp_path / "cache/teacher").glob("motion-*.npy"))) == 1


def test_the_memory_of_a_run_is_a_teacher(data, config, tmp_path, capsys):
    earlier, later = tmp_path / "earlier", tmp_path / "later"
    memory = ("FALSE_NEGATIVES.DETECTOR", "memory", "DATA.TEST_LIST", "")
    assert main(["train", *arguments(data, config, earlier, *memory)]) == 0
    checkpoint = sorted((earlier / "checkpoints").glob("*.pt"))[-1]
    both = f"motion + {checkpoint}"
    words = arguments(data, config, later, *TEACHER, "FALSE_NEGATIVES.TEACHER", both)
    assert main(["train", *words]) == 0
    width = np.load(later / "teacher.npy", mmap_mode="r").shape[1]
    assert width > weights(earlier)["detector.memory"].shape[1]
    plain = tmp_path / "plain"
    assert main(["train", *arguments(data, config, plain, "DATA.TEST_LIST", "")]) == 0
    checkpoint = sorted((plain / "checkpoints").glob("*.pt"))[-1]
    words = arguments(data, config, later / "x", *TEACHER, "FALSE_NEGATIVES.TEACHER", checkpoint)
    assert "has no memory bank" in fails(capsys, "train", *words)


def test_an_encoder_is_a_teacher(data, config, tmp_path):
    source, out = tmp_path / "source", tmp_path / "out"
    assert main(["train", *arguments(data, config, source, "DATA.TEST_LIST", "")]) == 0
    checkpoint = sorted((source / "checkpoints").glob("*.pt"))[-1]
    name = f"vidcsl:{checkpoint}"
    assert (
        main(["train", *arguments(data, config, out, *TEACHER, "FALSE_NEGATIVES.TEACHER", name)])
        == 0
    )
    assert np.load(out / "teacher.npy").any(axis=1).all()


def test_an_encoder_of_another_architecture_is_a_teacher(data, config, tmp_path, capsys):
    out = tmp_path / "out"
    image = "MODEL: {NAME: frames, IMAGE: resnet10t, FRAME_SIZE: 32}\nDATA: {FRAMES: 2}\n"
    (tmp_path / "image.yaml").write_text(image)
    cfg = load_config(tmp_path / "image.yaml")
    torch.save(build_encoder(cfg).backbone.image.state_dict(), tmp_path / "image.pt")
    words = arguments(
        data, config, out, *TEACHER, "FALSE_NEGATIVES.TEACHER", f"motion + {tmp_path}/image.yaml"
    )
    assert "image.yaml has no MODEL.WEIGHTS" in fails(capsys, "train", *words)
    weights = f"MODEL.WEIGHTS: image:{tmp_path}/image.pt\nEVALUATE: {{TRAIN_VIEWS: 1}}\n"
    (tmp_path / "image.yaml").write_text(image + weights)
    assert main(["train", *words]) == 0
    assert np.load(out / "teacher.npy").shape[1] > 512  # of the image network, and of motion


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("movement", "'movement' is neither motion, a file of features"),
        ("missing.npz", "there is no missing.npz"),
        ("", "'' is neither motion"),
        ("motion + ", "'' is neither motion"),
    ],
)
def test_unknown_teachers(data, config, tmp_path, capsys, name, message):
    words = arguments(data, config, tmp_path / "x", *TEACHER, "FALSE_NEGATIVES.TEACHER", name)
    assert message in fails(capsys, "train", *words)


def test_features_that_tell_nothing(data, config, tmp_path, capsys):
    rows = read_rows(data / "train.csv")
    np.savez(tmp_path / "same.npz", **{row.video: np.ones(3) for row in rows})
    words = arguments(data, config, tmp_path / "x", *of_features(tmp_path / "same.npz"))
    assert "gives all videos the same vector" in fails(capsys, "train", *words)


def test_neighbours_measures_before_training(data, config, perfect, tmp_path, capsys):
    out = tmp_path / "out"
    words = arguments(data, config, tmp_path / "run", *of_features(perfect))
    assert main(["neighbours", *words, "--out", str(out)]) == 0
    assert "100.0% of them right" in capsys.readouterr().out
    found = json.loads((out / "neighbours.json").read_text())
    assert found["precision"] == found["recall"] == 1
    assert not found["warning"]
    assert {row["precision"] for row in found["by_class"].values()} == {1}
    assert len((out / "neighbours.csv").read_text().splitlines()) == found["videos"] + 1
    page = (out / "neighbours.html").read_text()
    assert "of one class" in page
    assert "data:image/png" in page
    shutil.rmtree(out)
    words = arguments(data, config, tmp_path / "run", *LABELS)
    assert "set FALSE_NEGATIVES.DETECTOR teacher" in fails(capsys, "neighbours", *words)


def test_neighbours_warns_of_a_teacher_that_guesses(data, config, tmp_path, capsys):
    rows = read_rows(data / "train.csv")
    generator = np.random.default_rng(0)
    np.savez(tmp_path / "noise.npz", **{row.video: generator.standard_normal(3) for row in rows})
    words = (*TEACHER, "FALSE_NEGATIVES.TEACHER", tmp_path / "noise.npz")
    words += ("FALSE_NEGATIVES.RULE", "share", "FALSE_NEGATIVES.CEILING", 0.9)
    words = arguments(data, config, tmp_path / "run", *words)
    assert main(["neighbours", *words, "--out", str(tmp_path / "out")]) == 0
    assert "No better than chance" in capsys.readouterr().out


@pytest.mark.parametrize("suffix", [".pt", ".sharded", ".pieces"])
def test_a_checkpoint_is_a_teacher_however_it_was_written(tmp_path, suffix):
    path = tmp_path / f"epoch00001_step000000{suffix}"
    path.touch()
    cfg = overridden(default_config(), {"FALSE_NEGATIVES.TEACHER": str(path)})
    assert teacher_weights(cfg) == {str(path): 1}


def test_weights_of_joined_teachers(data, config, perfect, tmp_path, capsys):
    both = f"motion + 2.5*{perfect}"
    cfg = overridden(default_config(), {"FALSE_NEGATIVES.TEACHER": both})
    assert teacher_weights(cfg) == {"motion": 1, str(perfect): 2.5}
    out = tmp_path / "out"
    words = arguments(data, config, tmp_path / "run", *TEACHER, "FALSE_NEGATIVES.TEACHER", both)
    assert main(["neighbours", *words, "--out", str(out)]) == 0
    found = json.loads((out / "neighbours.json").read_text())
    assert found["teacher"] == both
    alone = {name: points[0]["precision"] for name, points in found["alone"].items()}
    assert alone.keys() == {"motion", str(perfect)}
    assert alone[str(perfect)] == 1
    assert f"{perfect} alone" in capsys.readouterr().out
    for wrong, message in (("motion + 2*motion", "names motion twice"), ("0*motion", "is zero")):
        words = arguments(data, config, out, *TEACHER, "FALSE_NEGATIVES.TEACHER", wrong)
        assert message in fails(capsys, "neighbours", *words)
