import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import yaml

from vidcsl.cli import main
from vidcsl.data.lists import read_list
from vidcsl.data.synthetic import generate
from vidcsl.errors import PassingError, UserError
from vidcsl.studies import runner
from vidcsl.studies.plan import read_study
from vidcsl.studies.runner import (
    FINISHED,
    LOG,
    Runner,
    is_finished,
    scaled,
    state,
    total_hours,
    write_few,
)
from vidcsl.training.checkpoint import load_newest

EPOCHS = 60
BASE = {
    "PRECISION": "float32",
    "DATA": {"FRAMES": 2, "SHORT_SIDE": 16, "WORKERS": 0},
    "MODEL": {"WIDTH": 4, "DEPTH": 1, "FRAME_SIZE": 16},
    "METHOD": {"PROJECTOR_HIDDEN": 8, "PROJECTOR_DIM": 4},
    "TRAIN": {"EPOCHS": EPOCHS, "BATCH": 4, "WARMUP_EPOCHS": 0, "CHECKPOINT_EVERY": 2},
    "EVALUATE": {"TRAIN_VIEWS": 1, "TEST_VIEWS": 1, "KNN_K": 3, "RETRIEVAL": False},
    "ATTACK": {"EPS_LINF": [8], "STEPS": 1, "CHECK_CLIPS": 0, "EXAMPLES": 0},
    "CORRUPT": {"NAMES": []},
    "REPORT": {"ENABLED": False},
}


@pytest.fixture
def written(tmp_path):
    """A study file of a tiny rendered set, with one arm."""
    data = tmp_path / "data"
    lists = generate(
        data, classes=("sway", "grow"), sources_per_class=4, clips_per_source=1, frames=4, size=16
    )
    where = dict(zip(("TRAIN_LIST", "TEST_LIST"), map(str, lists), strict=True))
    (tmp_path / "base.yaml").write_text(
        yaml.safe_dump({**BASE, "DATA": {**BASE["DATA"], "ROOT": str(data), **where}})
    )
    study = {
        "_BASE_": "base.yaml",
        "OUTPUT_DIR": str(tmp_path / "runs"),
        "ARMS": {"plain": {"METHOD.NAME": "simclr"}},
        "BASELINE": "plain",
        "SEEDS": [0],
    }
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(study))
    return path


def several(written, arms=("plain", "two", "three", "four")):
    document = yaml.safe_load(written.read_text())
    document["ARMS"] = {name: {"METHOD.NAME": "simclr"} for name in arms}
    written.write_text(yaml.safe_dump(document, sort_keys=False))
    return read_study(written).runs


def script(monkeypatch, text):
    """Let the runs be this script, which is given the run's folder."""
    monkeypatch.setattr(
        runner, "command", lambda run, processes: [sys.executable, "-c", text, str(run.folder)]
    )


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_killed_study_resumes_where_it_stopped(written, capsys):
    (run,) = read_study(written).runs

    def kill():
        wait_for(lambda: list((run.folder / "checkpoints").glob("epoch*.pt")))
        os.kill(os.getpid(), signal.SIGTERM)

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(SystemExit) as stopped:
        main(["study", str(written)])
    killer.join()
    assert stopped.value.code == 128 + signal.SIGTERM
    assert state(run) == "started"
    assert 0 < load_newest(run.folder / "checkpoints")["position"]["epoch"] < EPOCHS
    before = (run.folder / "log.jsonl").read_text()
    assert main(["study", str(written)]) == 0
    assert state(run) == "finished"
    assert (run.folder / "log.jsonl").read_text().startswith(before)
    found = json.loads((written.parent / "runs" / "study.json").read_text())
    assert found["settings"][""]["arms"]["plain"]["attacks"]["pgd_linf"]["clips"] == [2]
    capsys.readouterr()
    assert main(["study", str(written), "--dry-run"]) == 0
    assert "plain seed 0: finished" in capsys.readouterr().out


def test_runs_side_by_side_each_once(written, monkeypatch):
    runs = several(written)
    script(
        monkeypatch,
        "import os, pathlib, sys, time; p = pathlib.Path(sys.argv[1]);"
        "open(p / 'gpu', 'a').write(os.environ['CUDA_VISIBLE_DEVICES'] + ' ');"
        "(p.parents[1] / f'now{os.getpid()}').touch(); time.sleep(0.4);"
        "open(p.parents[1] / 'most', 'a').write(f'{len(list(p.parents[1].glob(\"now*\")))} ');"
        "(p.parents[1] / f'now{os.getpid()}').unlink()",
    )
    Runner(jobs=2, gpus=["5", "7"]).run(runs)
    assert all(map(is_finished, runs))
    shown = {(run.folder / "gpu").read_text() for run in runs}
    assert shown == {"5 ", "7 "}
    assert max(map(int, (runs[0].folder.parents[1] / "most").read_text().split())) == 2
    Runner().run(runs)  # nothing is left to do
    assert (runs[0].folder / "gpu").read_text() in shown


def test_a_failure_ends_its_run_alone_and_is_named(written, monkeypatch):
    runs = several(written)
    script(monkeypatch, "import sys; print('why'); sys.exit('two' in sys.argv[1])")
    with pytest.raises(UserError, match=r"failed: two seed 0; see .*two/seed0/study.log"):
        Runner(jobs=2).run(runs)
    assert [run.arm for run in runs if not is_finished(run)] == ["two"]
    assert "why" in (runs[1].folder / LOG).read_text()


def test_a_run_that_a_signal_ended_may_succeed_another_time(written, monkeypatch):
    script(monkeypatch, "import os; os.kill(os.getpid(), 9)")
    with pytest.raises(PassingError, match="failed: plain seed 0"):
        Runner().run(read_study(written).runs)


def test_processes_of_a_run_that_die_are_restarted(written):
    (run,) = read_study(written).runs
    several = runner.command(run, processes=2)
    assert {"--nproc-per-node=2", "--max-restarts=3", "--standalone"} <= set(several)
    assert runner.command(run)[1:4] == ["-m", "vidcsl.cli", "train"]


def test_a_local_job_runs_all_that_is_left_and_its_tables_follow(written, capsys):
    words = ["study", str(written), "TRAIN.EPOCHS", "1", "--launcher", "local"]
    assert main([*words, "--table"]) == 0
    assert "no run of plain has results yet" in capsys.readouterr().out
    assert not (written.parent / "runs/jobs").exists()
    assert main([*words, "--nodes", "2"]) == 2
    assert main([*words, "--wait"]) == 0
    assert "study.html" in capsys.readouterr().out
    (run,) = read_study(written, ["TRAIN.EPOCHS", "1"]).runs
    assert is_finished(run)
    assert main([*words, "--wait"]) == 0
    assert "nothing is left to run" in capsys.readouterr().out


def test_a_run_that_was_stopped_before_its_first_result_is_not_in_the_tables(written, capsys):
    (run,) = read_study(written).runs
    run.folder.mkdir(parents=True)
    (run.folder / "results.json").write_text('{"lists": {"train": "1a2b"}}')
    assert main(["study", str(written), "--table"]) == 0
    assert "no run of plain has results yet" in capsys.readouterr().out
    assert main(["compare", str(run.folder), "--out", str(run.folder / "page")]) == 2
    assert f"{run.folder} has no results yet" in capsys.readouterr().err


def test_a_run_of_another_process_is_skipped_or_waited_for(written, monkeypatch, capsys):
    (run,) = read_study(written).runs
    script(monkeypatch, "import sys; open(sys.argv[1] + '/ran', 'w')")
    run.folder.mkdir(parents=True)
    hold = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, 2); print(); input()"
    other = subprocess.Popen(
        [sys.executable, "-c", hold, str(run.folder / ".lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    other.stdout.readline()
    Runner().run([run])
    assert "another process is running it" in capsys.readouterr().err
    assert not (run.folder / "ran").exists()
    threading.Timer(1.0, other.kill).start()
    Runner(patient=True).run([run])
    other.wait()
    assert is_finished(run)
    assert (run.folder / "ran").exists()


def test_another_config_is_not_finished(written):
    (run,) = read_study(written).runs
    run.folder.mkdir(parents=True)
    (run.folder / FINISHED).write_text("{")
    assert not is_finished(run)
    (other,) = read_study(written, ["TRAIN.EPOCHS", "2"]).runs
    (run.folder / FINISHED).write_text(json.dumps({"config": runner.config_digest(run)}))
    assert (is_finished(run), is_finished(other)) == (True, False)


def test_processes_share_the_cores_and_leave_torchrun(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setenv("RANK", "3")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    found = runner.environment("1", jobs=3)
    assert (found["OMP_NUM_THREADS"], found["CUDA_VISIBLE_DEVICES"]) == ("2", "1")
    assert "RANK" not in found
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert runner.environment(jobs=3)["OMP_NUM_THREADS"] == "5"


def test_parts_are_all_runs_each_once(written, monkeypatch, capsys):
    several(written)
    seen = []
    for part in ("0/3", "1/3", "2/3"):
        assert main(["study", str(written), "--dry-run", "--part", part]) == 0
        seen += [line for line in capsys.readouterr().out.splitlines() if line.endswith("missing")]
    assert len(seen) == len(set(seen)) == 4
    assert main(["study", str(written), "--dry-run", "--part", "3/3"]) == 2


def test_arms_choose_runs(written, capsys):
    several(written)
    assert main(["study", str(written), "--dry-run", "--arms", "two,four"]) == 0
    seen = [line.split()[0] for line in capsys.readouterr().out.splitlines() if "seed" in line]
    assert seen == ["two", "four"]
    assert main(["study", str(written), "--dry-run", "--arms", "two,x"]) == 2
    assert "no arm is named 'x'; choose from plain, two, three, four" in capsys.readouterr().err


def test_every_stage_of_a_trial_is_scaled_by_its_data():
    seconds = {"pretraining": 2.0, "features of train.csv": 1.0, "pgd_linf": 3.0}
    assert scaled({**seconds, "earlier rounds": 1.0}, steps=10, rounds=3, train=5, test=4) == {
        "pretraining": 20,
        "earlier rounds": 30,
        "features of train.csv": 5,
        "pgd_linf": 12,
    }


def test_recorded_seconds_of_all_stages_are_hours():
    assert total_hours({"cost": {"seconds": {"a": 1800, "b": 5400, "c": None}}}) == 2
    assert total_hours({}) == 0


def test_the_few_videos_of_a_trial_are_spread_over_the_list(tmp_path):
    path = tmp_path / "ten.csv"
    path.write_text("video,class,group\n" + "".join(f"{i}.mp4,{i // 5},\n" for i in range(10)))
    few = write_few(read_list(path, root=tmp_path), 4, tmp_path / "few.csv", str(tmp_path))
    found = read_list(few, root=tmp_path)
    assert [video.path.name for video in found.videos] == ["0.mp4", "2.mp4", "5.mp4", "7.mp4"]
    assert [video.label for video in found.videos] == [0, 0, 1, 1]
