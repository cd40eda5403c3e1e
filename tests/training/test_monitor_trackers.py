import sys

import pytest

from vidcsl.errors import UserError
from vidcsl.io import Log
from vidcsl.run_folder import RunFolder
from vidcsl.training.monitor import TRACKERS, TrackedRun, open_trackers


@pytest.fixture
def run(tmp_path):
    config = {"TRAIN.LR": 0.1, "NAME": "tiny", "ATTACK.RUNS": []}
    return TrackedRun(
        name="tiny/seed0", project="videos", folder=RunFolder(tmp_path), config=config
    )


def log_and_resume(name, run):
    """Two steps, and after a resume one of them again and one more."""
    for steps in ((1, 2), (2, 3)):
        log = Log(run.folder.log, open_trackers([name], run))
        for step in steps:
            log.write("train", step=step, loss=10.0 + step, path="x")
        log.write("results", **{"clean/R@1": 0.5})
        log.close()


def test_tensorboard_continues_after_a_resume(run):
    log_and_resume("tensorboard", run)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(run.folder.tensorboard))
    found.Reload()
    assert [(e.step, e.value) for e in found.Scalars("train/loss")][-1] == (3, 13.0)
    assert [e.value for e in found.Scalars("results/clean/R@1")] == [0.5, 0.5]


def test_mlflow_continues_its_run_after_a_resume(run, monkeypatch, tmp_path):
    tracking = pytest.importorskip("mlflow.tracking", reason="the extra vidcsl[mlflow]")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    before = tracking.get_tracking_uri()
    tracking.set_tracking_uri(f"file://{tmp_path}/mlruns")
    try:
        log_and_resume("mlflow", run)
        client = tracking.MlflowClient()
        (known,) = client.search_runs([client.get_experiment_by_name("videos").experiment_id])
        history = client.get_metric_history(known.info.run_id, "train/loss")
    finally:
        tracking.set_tracking_uri(before)
    assert [(m.step, m.value) for m in history] == [(1, 11), (2, 12), (2, 12), (3, 13)]
    assert known.data.metrics["results/clean/R_1"] == 0.5
    assert known.data.params["TRAIN.LR"] == "0.1"
    assert (known.info.run_name, known.info.status) == ("tiny/seed0", "FINISHED")


def test_wandb_continues_its_run_after_a_resume(run, monkeypatch):
    pytest.importorskip("wandb", reason="the extra vidcsl[wandb]")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    log_and_resume("wandb", run)
    files = list(run.folder.path.glob("wandb/offline-run-*/run-*.wandb"))
    assert len(files) == 2
    assert len({path.name for path in files}) == 1  # one run, begun and gone on with
    assert b"results/clean/R@1" in files[0].read_bytes()
    assert b"train/loss" in files[0].read_bytes()


class Broken:
    def log(self, values, *, step):
        raise ConnectionError("the server is away")

    def close(self):
        raise AssertionError("it was dropped")


def test_a_tracker_that_fails_is_dropped_and_the_log_continues(run, capsys):
    log = Log(run.folder.log, [Broken()])
    for step in (1, 2):
        log.write("train", step=step, loss=1.0)
    log.close()
    assert len(run.folder.log.read_text().splitlines()) == 2
    assert (
        capsys.readouterr().err
        == "vidcsl: Broken failed and is no longer used: the server is away\n"
    )


def test_a_missing_library_and_a_refused_account_are_one_line(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # as if it were not installed
    with pytest.raises(UserError, match=r"wandb is missing: pip install 'vidcsl\[wandb\]'"):
        open_trackers(["wandb"], run)

    def refuse(run):
        raise RuntimeError("no account\nmore")

    monkeypatch.setitem(TRACKERS, "mlflow", refuse)
    with pytest.raises(UserError, match=r"mlflow cannot start: no account$"):
        open_trackers(["mlflow"], run)
