import io
import json
import subprocess
import sys
import time

import pytest
import torch
from rich.console import Console

from vidcsl.errors import UserError
from vidcsl.io import (
    Bar,
    Log,
    Meter,
    load_arrays,
    replacing,
    save_arrays,
    stored_key,
    write_atomically,
)


def test_the_log_appends_one_json_object_per_line(tmp_path):
    log = Log(tmp_path / "log.jsonl")
    log.write("train", step=3, loss=1.5)
    log.close()
    again = Log(tmp_path / "log.jsonl")
    again.write("note", text="x")
    again.close()
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines == [{"kind": "train", "step": 3, "loss": 1.5}, {"kind": "note", "text": "x"}]
    Log(None).write("train", loss=1.0)  # processes other than the main one write nothing


def test_the_meter_tells_waiting_from_working():
    meter = Meter()

    def slow():
        for item in range(3):
            time.sleep(0.03)
            yield item

    for _ in meter.watch(slow()):
        time.sleep(0.01)
        meter.add(4)
    rates = meter.rates()
    assert 0.4 < rates["data_wait"] < 0.95
    assert 12 / 1.0 < rates["clips_per_second"] < 12 / 0.12
    assert meter.rates()["data_wait"] == 0


def test_without_a_terminal_the_bar_prints_plain_lines(capsys):
    bar = Bar("work", total=3, interval=0.0)
    for _ in range(3):
        bar.advance(1, loss="1.25")
    bar.close()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert lines[-1] == "work: 3/3 videos, loss 1.25, 0 s left"
    Bar("silent", total=1, shown=False).advance()
    assert capsys.readouterr().err == ""


def test_what_is_left_is_said_in_units_that_one_reads(capsys, monkeypatch):
    now = iter([0.0, 40.0, 4000.0, 4000.0 + 3600])
    monkeypatch.setattr("time.monotonic", lambda: next(now))
    bar = Bar("pretraining", total=4, unit="steps", interval=0.0)
    for _ in range(3):
        bar.advance()
    assert capsys.readouterr().err.splitlines() == [
        "pretraining: 1/4 steps, 2 min left",
        "pretraining: 2/4 steps, 1 h 7 min left",
        "pretraining: 3/4 steps, 42 min left",
    ]


def test_on_a_terminal_the_notes_stand_below_the_bar(capsys):
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100)
    bar = Bar("work", total=3, console=console)
    bar.advance(1, loss="1.25")
    bar.advance(1, **{"loss": "1.20", "data wait": "3%"})
    bar.close()
    rows = screen.getvalue().splitlines()[-4:-1]
    assert "2/3" in rows[0]
    assert "videos" in rows[0]
    assert "loss" in rows[1]
    assert "data wait" in rows[1]
    assert "1.20" in rows[2]
    assert "3%" in rows[2]
    assert capsys.readouterr().err == ""


def test_files_folders_and_jobs_are_imported_without_torch():
    modules = "vidcsl.io, vidcsl.run_folder, vidcsl.launch, vidcsl.seeding"
    code = f"import sys, {modules}; print('torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "False\n"


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "results.json"
    write_atomically(path, "old")

    def write_half():
        with replacing(path) as partial:
            partial.write_text("half")
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        write_half()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_arrays_come_back_and_damage_is_reported(tmp_path):
    path = tmp_path / "arrays.npz"
    save_arrays(path, {"key": "abc", "values": torch.arange(3)}, compressed=True)
    (values,) = load_arrays(path, ["values"])
    assert values.tolist() == [0, 1, 2]
    assert stored_key(path) == "abc"
    path.write_bytes(path.read_bytes()[:50])
    assert stored_key(path) == ""
    with pytest.raises(UserError, match="is damaged"):
        load_arrays(path, ["values"])
