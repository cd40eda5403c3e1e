import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vidcsl.data.prepare import jobs
from vidcsl.data.prepare.jobs import Task
from vidcsl.errors import UserError, VideoError


def work(path, kind="well"):
    """Leaves a trace, then goes well or wrong."""
    with open(path, "a") as file:
        file.write("x")
    if kind == "bad":
        raise VideoError(path, "no video")
    if kind == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if kind == "hang":
        time.sleep(60)
    if kind == "user":
        raise UserError("the disk is on fire")
    return {"traces": len(path.read_text())}


def run(tmp_path, kinds, *, state="1", workers=2, **options):
    tasks = [Task(k, state, {"path": tmp_path / k, "kind": kind}) for k, kind in kinds.items()]
    record = tmp_path / "record.jsonl"
    return jobs.run(work, tasks, record=record, title="work", workers=workers, **options)


def test_failures_are_told_apart_and_do_not_end_the_job(tmp_path, capsys):
    kinds = {"c": "crash", "b": "bad", "w": "well", "h": "hang", "v": "well"}
    outcomes = run(tmp_path, kinds, timeout=2)
    assert outcomes.results == {"w": {"traces": 1}, "v": {"traces": 1}}
    assert outcomes.failures == {
        "c": "the process died while working on it (SIGSEGV)",
        "b": "no video",
        "h": "not done within 2 s",
    }
    assert "work: 5/5 videos, failed 3" in capsys.readouterr().err
    # What the machine may be to blame for is tried again; the rest is taken from the record.
    again = run(tmp_path, kinds | {"c": "well", "h": "well"})
    assert again.resumed == 3
    assert list(again.results.items()) == [
        ("c", {"traces": 2}),
        ("w", {"traces": 1}),
        ("h", {"traces": 2}),
        ("v", {"traces": 1}),
    ]
    assert again.failures == {"b": "no video"}


def test_another_state_or_a_lost_result_is_done_anew(tmp_path):
    run(tmp_path, {"a": "well", "b": "bad"})
    assert run(tmp_path, {"a": "well", "b": "bad"}).resumed == 2
    assert run(tmp_path, {"a": "well", "b": "well"}, intact=lambda _: False).resumed == 1
    again = run(tmp_path, {"a": "well", "b": "well"}, state="2")
    assert (again.resumed, again.results["b"]) == (0, {"traces": 2})


def test_a_record_cut_short(tmp_path):
    run(tmp_path, {"a": "well", "b": "well"})
    record = tmp_path / "record.jsonl"
    record.write_bytes(record.read_bytes()[:-9])
    again = run(tmp_path, {"a": "well", "b": "well", "c": "well"})
    assert again.resumed == 1
    names = {
        json.loads(line)["name"] for line in record.read_text().splitlines() if line[-1] == "}"
    }
    assert names == {"a", "b", "c"}
    assert run(tmp_path, {"a": "well", "b": "well", "c": "well"}).resumed == 3


def test_other_errors_end_the_job_and_keep_what_is_done(tmp_path):
    with pytest.raises(UserError, match="on fire"):
        run(tmp_path, {"a": "well", "b": "well", "u": "user", "z": "hang"}, workers=1)
    assert run(tmp_path, {"a": "well", "b": "well"}).resumed == 2
    with pytest.raises(UserError, match="at least one worker"):
        jobs.run(work, [], record=tmp_path / "r", title="work", workers=0)


SCRIPT = """
from pathlib import Path
from tests.data.prepare.test_jobs import run
if __name__ == "__main__":
    run(Path({path!r}), {{"a": "well", "h": "hang", "b": "well"}})
"""


def processes_of(script):
    """Running processes that inherited the environment of the script."""
    marker = f"JOB_OF_THE_TEST={script}".encode()
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if marker in path.read_bytes().split(b"\0"):
                found.append(path)
        except OSError:
            continue
    return found


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="there is no /proc here")
def test_a_kill_leaves_the_record_and_no_process(tmp_path):
    script, record = tmp_path / "script.py", tmp_path / "record.jsonl"
    script.write_text(SCRIPT.format(path=str(tmp_path)))
    root = str(Path(__file__).parents[3])  # where the script finds this module
    paths = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    env = os.environ | {"JOB_OF_THE_TEST": str(script), "PYTHONPATH": paths}
    parent = subprocess.Popen([sys.executable, script], env=env, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (record.exists() and record.read_text().count("\n") == 2):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    with pytest.raises(UserError, match="another process is using"):
        run(tmp_path, {"a": "well"})
    parent.kill()
    parent.wait()
    while processes_of(script):  # one of them hangs
        assert time.monotonic() < deadline
        time.sleep(0.05)
    again = run(tmp_path, {"a": "well", "h": "well", "b": "well"})
    assert again.resumed == 2
    assert again.results["h"] == {"traces": 2}


def test_worker_processes_start_without_torch():
    """It takes seconds and hundreds of megabytes, in each of them."""
    modules = ("cli", "data.prepare.archives", "data.prepare.scan", "data.prepare.transcode")
    script = f"import sys, {', '.join(f'vidcsl.{name}' for name in modules)}\n"
    script += "print(sorted({'torch', 'torchvision', 'decord'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def masked(path):
    return {"masked": signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])}


def test_workers_leave_ctrl_c_to_their_parent_from_their_first_moment(tmp_path):
    """Also while they import: each would print a traceback of its own."""
    tasks = [Task(name, "1", {"path": tmp_path / name}) for name in "ab"]
    record = tmp_path / "record.jsonl"
    found = jobs.run(masked, tasks, record=record, title="work", workers=2)
    assert found.results == {"a": {"masked": True}, "b": {"masked": True}}
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
