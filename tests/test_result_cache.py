import errno
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from vidcsl.errors import UserError
from vidcsl.run_folder import ResultCache, digest


def test_answers_come_back_in_a_new_process(tmp_path):
    first = ResultCache(tmp_path, settings={"eps": 1})
    first.record("clean", [3, 5], [True, False])
    first.record("pgd/1", [3], [0.25])
    again = ResultCache(tmp_path, settings={"eps": 1})
    assert again.answers("clean") == {3: True, 5: False}
    assert again.get("pgd/1", 3) == 0.25
    assert again.get("pgd/1", 5) is None
    assert again.answers("unheard of") == {}


def test_later_answer_counts(tmp_path):
    result_cache = ResultCache(tmp_path, settings={})
    result_cache.record("clean", [1], [False])
    result_cache.record("clean", [1], [True])
    assert ResultCache(tmp_path, settings={}).get("clean", 1) is True


def test_other_settings_have_other_answers(tmp_path):
    ResultCache(tmp_path, settings={"steps": 10}).record("clean", [1], [True])
    assert ResultCache(tmp_path, settings={"steps": 20}).get("clean", 1) is None
    assert ResultCache(tmp_path, settings={"steps": 10}).get("clean", 1) is True


def test_digest_ignores_the_order_of_keys():
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})


def test_processes_share_what_they_answered(tmp_path):
    here, there = (ResultCache(tmp_path, settings={}, rank=rank) for rank in (0, 1))
    here.record("clean", [0], [True])
    there.record("clean", [1], [False])
    here.reload()
    assert here.answers("clean") == {0: True, 1: False}
    # One process goes on alone after two.
    assert ResultCache(tmp_path, settings={}).answers("clean") == {0: True, 1: False}


def test_unfinished_line_is_dropped_and_written_over(tmp_path):
    result_cache = ResultCache(tmp_path, settings={})
    result_cache.record("clean", [0], [True])
    (path,) = tmp_path.iterdir()
    path.write_text(path.read_text() + '{"condition": "clean", "vid')
    again = ResultCache(tmp_path, settings={})
    again.record("clean", [1], [True])
    assert ResultCache(tmp_path, settings={}).answers("clean") == {0: True, 1: True}
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_damaged_line_is_named(tmp_path):
    ResultCache(tmp_path, settings={}).record("clean", [0], [True])
    (path,) = tmp_path.iterdir()
    path.write_text("oh no\n" + path.read_text())
    with pytest.raises(UserError, match=r"rank0.jsonl, line 1 is damaged"):
        ResultCache(tmp_path, settings={})


def test_full_disk_is_told_in_one_line(tmp_path, monkeypatch):
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
ledger = ResultCache(Path(sys.argv[1]), settings={})
start = len(ledger.answers("square"))
for video in range(start, 10**6):
    ledger.record("square", [video], [video * video])
"""


def test_kill_at_any_moment_loses_nothing_that_was_recorded(tmp_path):
    known = 0
    for pause in (0.0, 0.013, 0.029):
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)])
        _wait_for_more(tmp_path, known)
        time.sleep(pause)
        process.send_signal(signal.SIGKILL)
        process.wait()
        answers = ResultCache(tmp_path, settings={}).answers("square")
        assert len(answers) > known
        assert answers == {video: video * video for video in range(len(answers))}
        known = len(answers)


def _wait_for_more(folder, known):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        lines = sum(path.read_bytes().count(b"\n") for path in folder.glob("*.jsonl"))
        if lines > known + 2:  # the settings' line, and a new one
            return
        time.sleep(0.005)
    raise AssertionError("the writer wrote nothing")
