import io
import json
import time

from rich.console import Console

from vidcsl.io import Bar, Log, Meter


def test_log_lines(tmp_path):
    log = Log(tmp_path / "log.jsonl")
    log.write("train", step=3, loss=1.5)
    log.close()
    again = Log(tmp_path / "log.jsonl")
    again.write("note", text="x")
    again.close()
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines == [{"kind": "train", "step": 3, "loss": 1.5}, {"kind": "note", "text": "x"}]
    Log(None).write("train", loss=1.0)  # processes other than the main one write nothing


def test_meter_tells_waiting_from_working():
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


def test_plain_lines_where_there_is_no_terminal(capsys):
    bar = Bar("work", total=3, interval=0.0)
    for _ in range(3):
        bar.advance(1, loss="1.25")
    bar.close()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert lines[-1] == "work: 3/3, loss 1.25, 0 s left"
    Bar("silent", total=1, shown=False).advance()
    assert capsys.readouterr().err == ""


def test_a_live_view_on_a_terminal(capsys):
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100)
    bar = Bar("work", total=3, console=console)
    bar.advance(1, loss="1.25")
    bar.advance(1, **{"loss": "1.20", "data wait": "3%"})
    bar.close()
    rows = screen.getvalue().splitlines()[-4:-1]
    assert "2/3" in rows[0]
    assert "loss" in rows[1]
    assert "data wait" in rows[1]
    assert "1.20" in rows[2]
    assert "3%" in rows[2]
    assert capsys.readouterr().err == ""
