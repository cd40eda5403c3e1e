import os
import re
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import submitit
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from tests.processes import run_in_processes
from tests.tiny_job import arguments, losses
from vidcsl import run_folder
from vidcsl.cli import main
from vidcsl.config import load_config
from vidcsl.data.dataset import ClipDataset
from vidcsl.errors import UserError
from vidcsl.launch import Resources, TorchRun, submit
from vidcsl.pipelines.train import train_and_evaluate

ROOT = Path(__file__).parents[1]
PRETRAINING = ("DATA.TEST_LIST", "", "REPORT.ENABLED", "false", "TRAIN.EPOCHS", "2")


def train(distributed, words):
    train_and_evaluate(load_config(words[1], words[2:]), distributed)


def train_or_die(words, killed):
    """The command, in a worker of which the second is killed once, in the middle of an epoch."""
    read = ClipDataset.__getitem__

    def deadly(dataset, key):
        if key[0] == 1 and os.environ["RANK"] == "1" and not killed.exists():
            killed.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return read(dataset, key)

    ClipDataset.__getitem__ = deadly
    assert main(["train", *words, "--resume"]) == 0


@pytest.fixture
def _signals():
    """Put back the handlers of this process that torchrun's agent takes."""
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_an_error_of_the_user_is_not_started_anew(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--max-restarts=3"]
    command += ["-m", "vidcsl.cli", "train", "--cfg", str(tmp_path / "none.yaml"), "--resume"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode
    assert done.stderr.count("vidcsl: error: ") == 1


@pytest.mark.usefixtures("_signals")
def test_a_killed_worker_starts_anew_and_changes_nothing(data, config, tmp_path):
    calm = arguments(data, config, tmp_path / "calm", *PRETRAINING)
    run_in_processes(train, 2, calm)  # which also readies the server that the next ones fork from
    killed = tmp_path / "killed"
    launch = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=2,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        run_id="elastic",
        max_restarts=1,
        start_method="forkserver",
    )
    stormy = arguments(data, config, tmp_path / "stormy", *PRETRAINING)
    elastic_launch(launch, train_or_die)(stormy, killed)
    assert killed.exists()
    assert losses(tmp_path / "stormy") == losses(tmp_path / "calm")
    assert (tmp_path / "stormy" / "results.json").exists()


SCRIPT = """
import pathlib, signal, sys, time
saved, started = map(pathlib.Path, sys.argv[1:])
if not saved.exists():
    signal.signal(signal.SIGTERM, lambda *_: (saved.write_text("state"), sys.exit(143)))
    signal.signal(signal.SIGUSR2, lambda *_: sys.exit("only the job may hear of it"))
    started.touch()
    time.sleep(60)
print("went on from", saved.read_text())
"""


def test_a_preempted_job_saves_and_is_queued_anew(tmp_path):
    # Pickled whole, as a class of no module: the job need not import the tests.
    class Patient(TorchRun):
        def node_command(self):
            return [sys.executable, *self.arguments]

    script, saved, started = (tmp_path / name for name in ("script.py", "saved", "started"))
    script.write_text(SCRIPT)
    executor = submitit.AutoExecutor(tmp_path / "jobs", cluster="local")
    executor.update_parameters(timeout_min=2)
    job = executor.submit(Patient((str(script), str(saved), str(started)), 1, 0))
    (task,) = until(lambda: started.exists() and children(int(job.job_id)))
    os.kill(task, signal.SIGUSR2)  # as Slurm does
    assert job.exception() is None
    assert saved.read_text() == "state"
    assert "went on from state" in job.stdout()
    assert "Requeued" in job.stdout()


def until(found):
    """What `found` gives once it gives something."""
    for _ in range(2400):  # two minutes, for a busy machine
        if answer := found():
            return answer
        time.sleep(0.05)
    raise AssertionError("waited in vain")


def children(pid):
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.fixture
def sbatch(tmp_path, monkeypatch):
    """A Slurm that only takes notes: where it puts what was submitted."""
    commands, submitted = tmp_path / "bin", tmp_path / "submitted.sh"
    commands.mkdir()
    scripts = {"srun": "exit 1", "sbatch": f'cp "$1" {submitted}; echo Submitted batch job 41'}
    for name, text in scripts.items():
        (commands / name).write_text(f"#!/bin/sh\n{text}\n")
        (commands / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", str(commands), prepend=os.pathsep)
    return submitted


def test_what_slurm_is_asked_for(data, config, sbatch, tmp_path, capsys):
    out = tmp_path / "run"
    words = ["--partition", "gpu", "--nodes", "2", "--gpus", "8", "--hours", "1.5"]
    words += ["--sbatch", "qos=low", "--launcher", "slurm"]
    assert main(["train", *arguments(data, config, out), *words]) == 0
    asked = sbatch.read_text()
    lines = ("partition=gpu", "nodes=2", "gpus-per-node=8", "time=90", "qos=low", "requeue")
    for line in (*lines, "ntasks-per-node=1", "signal=USR2@180"):
        assert f"#SBATCH --{line}\n" in asked
    assert "vidcsl: job 41, log " in capsys.readouterr().err
    (pickled,) = (out / "jobs").glob("41_submitted.pkl")
    run = submitit.core.utils.DelayedSubmission.load(pickled).function
    assert (run.processes, run.arguments[0], run.arguments[-1]) == (8, "train", "--resume")


def test_a_job_finds_a_shipped_config_wherever_it_starts(sbatch, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["--cfg", "demo", "OUTPUT_DIR", str(tmp_path / "run"), "--launcher", "slurm"]
    assert main(["train", *words]) == 0
    (pickled,) = (tmp_path / "run/jobs").glob("41_submitted.pkl")
    run = submitit.core.utils.DelayedSubmission.load(pickled).function
    assert Path(run.arguments[2]).read_text() == (ROOT / "configs/demo.yaml").read_text()


@pytest.mark.parametrize("words", [["--gpus", "2"], ["--wait"], ["--memory-gb", "8"]])
def test_what_only_jobs_have_is_not_ignored(data, config, tmp_path, capsys, words):
    assert main(["train", *arguments(data, config, tmp_path / "run"), *words]) == 2
    assert f"{words[0]} is a job option: add --launcher" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("hours", ["nan", "inf", "0", "soon"])
def test_hours_are_a_number(data, config, tmp_path, hours):
    with pytest.raises(SystemExit, match="2"):
        main(["train", *arguments(data, config, tmp_path / "run"), "--hours", hours])


def test_several_commands_are_one_array(sbatch, tmp_path):
    commands = [["train", "--cfg", name] for name in ("a", "b", "c")]
    jobs = submit(
        commands, launcher="slurm", folder=tmp_path / "jobs", resources=Resources(), at_once=2
    )
    assert [job.job_id for job in jobs] == ["41_0", "41_1", "41_2"]
    assert "#SBATCH --array=0-2%2\n" in sbatch.read_text()


def test_nodes_meet_at_the_first(monkeypatch):
    for name, value in {
        "SUBMITIT_EXECUTOR": "slurm",
        "SLURM_JOB_ID": "123456",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_NODEID": "1",
        "SLURM_JOB_NODELIST": "gpu[07-08]",
    }.items():
        monkeypatch.setenv(name, value)
    command = TorchRun(("train",), 8, 3).node_command()
    expected = ("--nnodes=2", "--rdzv-endpoint=gpu07:23456", "--rdzv-conf=is_host=0")
    assert {*expected, "--nproc-per-node=8", "--max-restarts=3"} <= set(command)


def test_a_local_job_outlives_what_started_it_and_saves_when_it_is_killed(
    data, config, tmp_path, monkeypatch, capsys
):
    out = tmp_path / "run"
    words = arguments(data, config, out, *PRETRAINING[:-1], "4000")
    command = [sys.executable, "-m", "vidcsl.cli", "train", *words, "--launcher", "local", "--wait"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as waiter:
        number, log = re.match(r"vidcsl: job (\d+), log (.+)", waiter.stderr.readline()).groups()
        until(lambda: (out / "log.jsonl").exists())
        waiter.send_signal(signal.SIGINT)
        assert waiter.stderr.read() == "\nvidcsl: stopped waiting; the jobs continue\n"
    assert waiter.returncode == 128 + signal.SIGINT
    lines = (out / "log.jsonl").read_text()
    until(lambda: (out / "log.jsonl").read_text() != lines)
    # Nobody else may train in its folder now.
    monkeypatch.setattr(run_folder, "PATIENCE", 0)
    assert main(["train", *words, "--resume"]) == 2
    assert "another training run uses" in capsys.readouterr().err
    os.kill(int(number), signal.SIGTERM)
    until(lambda: not running(int(number)))
    assert "stopped by SIGTERM; continue with --resume" in Path(log).read_text()
    assert list((out / "checkpoints").glob("epoch*.pt"))


def running(pid):
    """Of a process that is no child of this one."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_local_jobs_say_how_they_ended(tmp_path, capfd):
    (job,) = submit(
        [["train", "--cfg", str(tmp_path / "none.yaml")]],
        launcher="local",
        folder=tmp_path / "jobs",
        resources=Resources(restarts=0),
    )
    assert "it ended with code" in str(job.exception())
    assert "cannot read config" in job.log.read_text()


def test_a_silent_sbatch_is_one_line(data, config, sbatch, tmp_path, capsys):
    (tmp_path / "bin/sbatch").write_text("#!/bin/sh\nexit 1\n")
    words = arguments(data, config, tmp_path / "run", "--launcher", "slurm")
    assert main(["train", *words]) == 2
    assert "the job was rejected by slurm: " in capsys.readouterr().err


def test_what_cannot_be_submitted(data, config, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    where = {"folder": tmp_path, "resources": Resources(nodes=2)}
    with pytest.raises(UserError, match="Slurm is not available"):
        submit([["train"]], launcher="slurm", **where)
    with pytest.raises(UserError, match="one node"):
        submit([["train"]], launcher="local", **where)
    words = ["train", *arguments(data, config, tmp_path / "run"), "--launcher"]
    for wrong in ("slurm --sbatch low", "local --hours 2", "local --nodes 2"):
        assert main([*words, *wrong.split()]) == 2
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(UserError, match=r"pip install 'vidcsl\[slurm\]'"):
        submit([["train"]], launcher="slurm", **where)
