"""`--checkpoint RUN_FOLDER`: a run's own config and newest checkpoint, without another word."""

import os
import shutil

import pytest

from tests.tiny_job import fails, newest, results_of
from vidcsl.cli import main


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "moved")


def test_evaluate_needs_nothing_but_the_folder(run, finished, capsys):
    (run / "results.json").unlink()
    assert main(["evaluate", "--checkpoint", str(run)]) == 0
    said = capsys.readouterr().err
    assert f"config: {run / 'config.yaml'}" in said
    assert f"checkpoint: {newest(run)}" in said
    assert results_of(run)["clean"] == results_of(finished)["clean"]


def test_a_checkpoint_file_of_a_run_brings_its_config_too(run, finished, tmp_path):
    words = ["OUTPUT_DIR", str(tmp_path / "out"), "ATTACK.RUNS", "[]", "CORRUPT.NAMES", "[]"]
    assert main(["evaluate", "--checkpoint", str(newest(run)), *words]) == 0
    assert results_of(tmp_path / "out")["clean"] == results_of(finished)["clean"]


def test_export_and_corrupt_take_folders_too(run, tmp_path):
    assert main(["export", "--checkpoint", str(run), "--out", str(tmp_path / "encoder")]) == 0
    assert (tmp_path / "encoder").is_dir()
    words = ["CORRUPT.NAMES", "[C/contrast]"]
    assert main(["corrupt", "--checkpoint", str(run), *words]) == 0
    assert "contrast" in results_of(run)["corruptions"]["C"]


def test_mistakes(run, tmp_path, capsys, config):
    assert "give --cfg, or --checkpoint" in fails(capsys, "evaluate")
    (tmp_path / "odd" / "checkpoints").mkdir(parents=True)
    assert "no run with a config.yaml" in fails(
        capsys, "evaluate", "--checkpoint", str(tmp_path / "odd")
    )
    empty = ["evaluate", "--cfg", str(config), "--checkpoint", str(tmp_path / "odd")]
    assert "no checkpoint in" in fails(capsys, *empty)
    for path in (run / "checkpoints").iterdir():
        os.unlink(path)
    assert "no checkpoint in" in fails(capsys, "evaluate", "--checkpoint", str(run))
