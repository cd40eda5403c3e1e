"""A config that fits itself to the list and the machine."""

from pathlib import Path

import pytest

from vidcsl import fit
from vidcsl.config import dump_config, load_config
from vidcsl.data.lists import write_list

TWO_CORES = fit.Machine(cores=2, memory_gib=8, gpu_memory_gib=0)
GPU = fit.Machine(cores=16, memory_gib=128, gpu_memory_gib=24)


def own(tmp_path: Path, *words: object, videos: int = 226):
    rows = [(f"{k % 6}/{k}.mp4", str(k % 6), "") for k in range(videos)]
    write_list(tmp_path / "train.csv", rows)
    given = ["DATA.TRAIN_LIST", tmp_path / "train.csv", "OUTPUT_DIR", tmp_path / "run", *words]
    return load_config("own", [str(word) for word in given])


@pytest.mark.parametrize("videos", [4, 27, 100, 226, 400, 5000])
def test_a_batch_fits_the_list_and_little_of_it_is_left_over(tmp_path, monkeypatch, videos):
    monkeypatch.setattr(fit, "this_machine", lambda device: TWO_CORES)
    cfg = own(tmp_path, videos=videos)
    steps = videos // cfg.TRAIN.BATCH
    assert steps >= 2
    assert videos - steps * cfg.TRAIN.BATCH < max(steps, 2)
    assert 2 <= cfg.TRAIN.BATCH <= 48


def test_more_videos_are_seen_less_often_in_the_same_minutes(tmp_path, monkeypatch):
    monkeypatch.setattr(fit, "this_machine", lambda device: TWO_CORES)
    few, many = own(tmp_path, videos=100), own(tmp_path, videos=400)
    assert few.TRAIN.EPOCHS > many.TRAIN.EPOCHS >= 20
    assert own(tmp_path, "FIT.MINUTES", 60, videos=400).TRAIN.EPOCHS > many.TRAIN.EPOCHS
    assert many.TRAIN.WARMUP_EPOCHS < many.TRAIN.EPOCHS / 4


def test_a_gpu_takes_the_whole_network_in_chunks_that_its_memory_holds(tmp_path, monkeypatch):
    monkeypatch.setattr(fit, "this_machine", lambda device: TWO_CORES)
    slim = own(tmp_path)
    monkeypatch.setattr(fit, "this_machine", lambda device: GPU)
    whole = own(tmp_path)
    assert whole.MODEL.WIDTH == 64 > slim.MODEL.WIDTH
    assert whole.MODEL.FRAME_SIZE > slim.MODEL.FRAME_SIZE
    assert 0 < whole.TRAIN.CHUNK < whole.TRAIN.BATCH
    assert slim.TRAIN.CHUNK == 0


def test_what_the_command_line_gives_stays_and_the_rest_is_fitted(tmp_path, monkeypatch):
    monkeypatch.setattr(fit, "this_machine", lambda device: TWO_CORES)
    cfg = own(tmp_path, "TRAIN.EPOCHS", 3, "MODEL.WIDTH", 8)
    assert (cfg.TRAIN.EPOCHS, cfg.MODEL.WIDTH) == (3, 8)
    assert cfg.TRAIN.WARMUP_EPOCHS < 3
    assert cfg.TRAIN.BATCH == own(tmp_path).TRAIN.BATCH


def test_the_config_of_a_run_is_not_fitted_again(tmp_path, monkeypatch):
    monkeypatch.setattr(fit, "this_machine", lambda device: TWO_CORES)
    cfg = own(tmp_path, "TRAIN.EPOCHS", 3)
    (tmp_path / "stored.yaml").write_text(dump_config(cfg))
    monkeypatch.setattr(fit, "this_machine", lambda device: GPU)
    assert load_config(tmp_path / "stored.yaml") == cfg


def test_a_run_that_has_begun_keeps_its_values(tmp_path, monkeypatch):
    monkeypatch.setattr(fit, "this_machine", lambda device: TWO_CORES)
    cfg = own(tmp_path)
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.yaml").write_text(dump_config(cfg))
    monkeypatch.setattr(fit, "this_machine", lambda device: GPU)
    assert own(tmp_path) != cfg  # nothing was trained yet
    (run / "checkpoints" / "epoch00001_step000000.pt").write_bytes(b"")
    assert own(tmp_path) == cfg


def test_it_says_what_it_chose(tmp_path, monkeypatch):
    monkeypatch.setattr(fit, "this_machine", lambda device: TWO_CORES)
    cfg, said = own(tmp_path), []
    words = ["DATA.TRAIN_LIST", str(tmp_path / "train.csv")]
    load_config("own", words, announce=said.append)
    assert len(said) == 1
    assert "226 videos" in said[0]
    assert "2 cores" in said[0]
    assert "an estimate" in said[0]
    assert f"TRAIN.BATCH {cfg.TRAIN.BATCH}" in said[0]
    load_config("demo", announce=said.append)
    assert len(said) == 1
