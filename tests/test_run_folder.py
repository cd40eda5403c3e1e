"""The run folder, its result cache, and the description of the environment."""

import errno
import json
import os
import shlex
import signal
import subprocess
import sys
import time

import pytest
import torch

from vidcsl.errors import UserError
from vidcsl.run_folder import ResultCache, RunFolder, describe_environment, digest


def test_results_merge_by_section_and_survive(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.create()
    assert folder.read_results() == {}
    folder.update_results({"clean": {"knn_top1": 0.5}, "seed": 1})
    folder.update_results({"clean": {"knn_top1": 0.6}})
    assert folder.read_results() == {"clean": {"knn_top1": 0.6}, "seed": 1}
    kept = {folder.results.name, folder.checkpoints.name, folder.artifacts.name}
    assert {path.name for path in folder.path.iterdir()} == kept
    folder.results.write_text("{")
    with pytest.raises(UserError, match="damaged"):
        folder.read_results()


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write to the output folder"):
        RunFolder(tmp_path / "file" / "run").create()


def test_the_command_can_be_run_again(monkeypatch):
    words = ["vidcsl", "train", "--cfg", "my run.yaml", "DATA.TEST_LIST", ""]
    words += ["ATTACK.RUNS", "[pgd/linf, pgd/l2]"]
    monkeypatch.setattr("sys.argv", words)
    assert shlex.split(describe_environment(torch.device("cpu"))["command"]) == words


def test_environment_is_plain_data_with_versions():
    described = describe_environment(torch.device("cpu"))
    assert json.loads(json.dumps(described)) == described
    assert described["versions"]["torch"]
    assert described["cpu_count"] >= 1
    assert described["device"] not in ("", "cpu")


def test_results_come_back_in_a_new_process(tmp_path):
    first = ResultCache(tmp_path, settings={"eps": 1})
    first.record("clean", [3, 5], [True, False])
    first.record("pgd/1", [3], [0.25])
    again = ResultCache(tmp_path, settings={"eps": 1})
    assert again.results("clean") == {3: True, 5: False}
    assert again.get("pgd/1", 3) == 0.25
    assert again.get("pgd/1", 5) is None
    assert again.results("unheard of") == {}


def test_the_later_result_counts(tmp_path):
    result_cache = ResultCache(tmp_path, settings={})
    result_cache.record("clean", [1], [False])
    result_cache.record("clean", [1], [True])
    assert ResultCache(tmp_path, settings={}).get("clean", 1) is True


def test_other_settings_have_other_results(tmp_path):
    ResultCache(tmp_path, settings={"steps": 10}).record("clean", [1], [True])
    assert ResultCache(tmp_path, settings={"steps": 20}).get("clean", 1) is None
    assert ResultCache(tmp_path, settings={"steps": 10}).get("clean", 1) is True


def test_digest_ignores_the_order_of_keys():
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})


def test_processes_share_their_results(tmp_path):
    here, there = (ResultCache(tmp_path, settings={}, rank=rank) for rank in (0, 1))
    here.record("clean", [0], [True])
    there.record("clean", [1], [False])
    here.reload()
    assert here.results("clean") == {0: True, 1: False}
    # One process goes on alone after two.
    assert ResultCache(tmp_path, settings={}).results("clean") == {0: True, 1: False}


def test_an_unfinished_line_is_dropped_and_written_over(tmp_path):
    result_cache = ResultCache(tmp_path, settings={})
    result_cache.record("clean", [0], [True])
    (path,) = tmp_path.iterdir()
    path.write_text(path.read_text() + '{"condition": "clean", "vid')
    again = ResultCache(tmp_path, settings={})
    again.record("clean", [1], [True])
    assert ResultCache(tmp_path, settings={}).results("clean") == {0: True, 1: True}
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_a_damaged_line_is_named(tmp_path):
    ResultCache(tmp_path, settings={}).record("clean", [0], [True])
    (path,) = tmp_path.iterdir()
    path.write_text("oh no\n" + path.read_text())
    with pytest.raises(UserError, match=r"rank0.jsonl, line 1 is damaged"):
        ResultCache(tmp_path, settings={})


def test_a_full_disk_is_reported_in_one_line(tmp_path, monkeypatch):
    result_cache = ResultCache(tmp_path, settings={})
    result_cache.record("clean", [0], [True])

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(UserError, match=r"No space left on device; .* run the same command"):
            result_cache.record("clean", [1], [True])
    assert ResultCache(tmp_path, settings={}).get("clean", 0) is True


WRITER = """
import sys
from pathlib import Path
from vidcsl.run_folder import ResultCache
cache = ResultCache(Path(sys.argv[1]), settings={})
start = len(cache.results("square"))
for video in range(start, 10**6):
    cache.record("square", [video], [video * video])
"""


def test_kill_at_any_moment_loses_nothing_that_was_recorded(tmp_path):
    known = 0
    for pause in (0.0, 0.013, 0.029):
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)])
        _wait_for_more(tmp_path, known)
        time.sleep(pause)
        process.send_signal(signal.SIGKILL)
        process.wait()
        results = ResultCache(tmp_path, settings={}).results("square")
        assert len(results) > known
        assert results == {video: video * video for video in range(len(results))}
        known = len(results)


def _wait_for_more(folder, known):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        lines = sum(path.read_bytes().count(b"\n") for path in folder.glob("*.jsonl"))
        if lines > known + 2:  # the settings' line, and a new one
            return
        time.sleep(0.005)
    raise AssertionError("the writer wrote nothing")
