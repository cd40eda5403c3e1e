"""The whole job on a tiny rendered set, through the command line."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vidcsl import builders
from vidcsl.cli import main
from vidcsl.config import load_config
from vidcsl.data.lists import Row, read_rows, write_list
from vidcsl.data.synthetic import generate
from vidcsl.engine.checkpoint import load_newest
from vidcsl.engine.distributed import World
from vidcsl.engine.trackers import TRACKERS
from vidcsl.engine.train import Trainer
from vidcsl.models.pretrained import load_pretrained, parse_weights
from vidcsl.stages.opening import open_job

ROOT = Path(__file__).parents[1]
CPU = World(rank=0, size=1, device=torch.device("cpu"))
CONFIG = """
SYNTHETIC: {ENABLED: false}
DEVICE: cpu
PRECISION: float32
DATA: {FRAMES: 4, STRIDE: 2, SHORT_SIDE: 32, WORKERS: 0}
MODEL: {WIDTH: 4, FRAME_SIZE: 24}
METHOD: {PROJECTOR_HIDDEN: 16, PROJECTOR_DIM: 8}
FALSE_NEGATIVES: {DETECTOR: known_groups, EXAMPLES: 0}
TRAIN: {EPOCHS: 2, BATCH: 8, LOG_EVERY: 1, OPTIMISER: adamw, LR: 1.0e-3, LR_BATCH: 0}
EVALUATE: {TRAIN_VIEWS: 2, TEST_VIEWS: 2, KNN_K: 3}
ATTACK:
  RUNS: [pgd/linf, 'apgd-dlr:steps=2/flicker:eps=16', 'pgd/linf:universal=yes,eps=8']
  EPS_LINF: [1, 8]
  STEPS: 2
CORRUPT: {NAMES: [gaussian_noise, C/contrast], EXAMPLES: 0}
REPORT: {ENABLED: false}
"""

REPORT = ("REPORT.ENABLED", "true", "FALSE_NEGATIVES.EXAMPLES", 2, "CORRUPT.EXAMPLES", 1)


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("synthetic")
    classes = ("sway", "bob", "rise", "blink")
    generate(root, classes=classes, sources_per_class=4, clips_per_source=2, frames=16, size=32)
    return root


@pytest.fixture(scope="session")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(CONFIG)
    return path


@pytest.fixture(scope="session")
def finished(data, config, tmp_path_factory):
    out = tmp_path_factory.mktemp("finished") / "run"
    assert main(["train", *arguments(data, config, out, *REPORT)]) == 0
    return out


def arguments(data, config, out, *overrides):
    where = {
        "DATA.ROOT": data,
        "DATA.TRAIN_LIST": data / "train.csv",
        "DATA.TEST_LIST": data / "test.csv",
        "OUTPUT_DIR": out,
    }
    pairs = [str(word) for pair in where.items() if pair[0] not in overrides for word in pair]
    return ["--cfg", str(config), *pairs, *map(str, overrides)]


def newest(out):
    return sorted((out / "checkpoints").glob("epoch*.pt"))[-1]


def losses(out):
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if line["kind"] == "train"}


def weights(out):
    return load_newest(out / "checkpoints")["method"]


def fails(capsys, *words):
    """The one line that the command leaves on stderr when it exits with code 2."""
    capsys.readouterr()
    assert main(list(words)) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert len(lines) == 1
    return lines[0]


def test_everything_is_written(finished):
    names = {path.name for path in finished.iterdir()}
    assert {"config.yaml", "log.jsonl", "results.json", "report.html", "environment.json"} <= names
    results = json.loads((finished / "results.json").read_text())
    assert set(results["clean"]["retrieval"]) == {"R@1", "R@5", "R@10", "R@20"}
    by_class = results["false_negatives"]["by_class"]
    assert {shares["precision"] for shares in by_class.values()} - {None} == {1}
    assert "<h3>Where the classes lie</h3>" in (finished / "report.html").read_text()
    for name in ("linear_top1", "linear_clip_top1", "knn_top1"):
        assert 0 <= results["clean"][name] <= 1
    curve = results["attacks"]["pgd_linf"]
    clean = results["attack_settings"]["pgd_linf"]["clean"]
    assert list(curve) == ["1/255", "8/255"]
    assert clean >= curve["1/255"] >= curve["8/255"] >= 0
    checks = results["attack_checks"]["pgd_linf"]["checks"]
    assert {check["passed"] for check in checks} <= {True, False}
    assert {"more steps never help the model", "the model gives logits"} <= {
        check["name"] for check in checks
    }
    assert len(results["corruptions"]["P"]["gaussian_noise"]) == 5
    assert len(results["corruptions"]["C"]["contrast"]) == 5
    assert results["false_negatives"]["precision"] == 1  # clips of one source share their class
    assert results["data"]["chance"] == 0.25
    assert results["cost"]["peak_memory_mib"] > 0
    environment = json.loads((finished / "environment.json").read_text())
    assert environment["versions"]["torch"] == torch.__version__.split("+")[0]


def test_the_same_seed_gives_the_same_run_and_another_does_not(data, config, finished, tmp_path):
    for seed, same in ((0, True), (1, False)):
        out = tmp_path / str(seed)
        words = ("SEED", seed, "DATA.WORKERS", 2, "DATA.TEST_LIST", "")
        assert main(["train", *arguments(data, config, out, *words)]) == 0
        assert (losses(out) == losses(finished)) is same


def stop_after(steps, monkeypatch, words):
    """Train until SIGTERM comes after so many steps, those of all rounds."""
    learn, done = Trainer._learn, []

    def killed(self, batch):
        outputs = learn(self, batch)
        done.append(batch)
        if len(done) == steps:
            os.kill(os.getpid(), signal.SIGTERM)
        return outputs

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_learn", killed)
        with pytest.raises(SystemExit) as stopped:
            main(["train", *words])
    assert stopped.value.code == 128 + signal.SIGTERM


def test_sigterm_saves_and_resume_continues_bit_for_bit(
    data, config, finished, tmp_path, monkeypatch
):
    out, words = tmp_path / "run", arguments(data, config, tmp_path / "run")
    stop_after(2, monkeypatch, words)
    assert load_newest(out / "checkpoints")["position"] == {"epoch": 0, "step": 2}
    assert main(["train", *words, "--resume"]) == 0
    assert losses(out) == losses(finished)
    first, second = weights(out), weights(finished)
    assert all(torch.equal(first[name], second[name]) for name in second)
    mine, theirs = (json.loads((run / "results.json").read_text()) for run in (out, finished))
    for section in ("clean", "attacks", "corruptions", "false_negatives", "geometry"):
        assert mine[section] == theirs[section]


def test_two_processes_write_the_same_results_file(data, config, finished, tmp_path):
    out = tmp_path / "run"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    port = ["--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0"]
    command = [*torchrun, *port, str(ROOT / "tools/train_net.py"), *arguments(data, config, out)]
    one_thread_each = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, check=False, env=one_thread_each
    )
    assert done.returncode == 0, done.stderr
    together, alone = losses(out), losses(finished)
    assert together.keys() == alone.keys()
    assert together[1] == pytest.approx(alone[1], rel=1e-3)
    mine, theirs = (json.loads((run / "results.json").read_text()) for run in (out, finished))
    assert mine.keys() == theirs.keys()
    assert mine["attack_settings"]["pgd_linf"]["clips"] == mine["data"]["test_videos"]
    assert mine["false_negatives"]["removed"] == theirs["false_negatives"]["removed"]

    # The same weights judged by one process give the same numbers, to the last bit.
    (checkpoint,) = list((out / "checkpoints").glob("epoch00002*.pt"))
    alone = tmp_path / "alone"
    words = arguments(data, config, alone, "ATTACK.RUNS", "[]", "CORRUPT.NAMES", "[]")
    assert main(["evaluate", *words, "--checkpoint", str(checkpoint)]) == 0
    single = json.loads((alone / "results.json").read_text())
    assert single["clean"] == mine["clean"]
    assert single["geometry"] == mine["geometry"]


def test_evaluation_alone_from_a_checkpoint(data, config, finished, tmp_path):
    (checkpoint,) = list((finished / "checkpoints").glob("epoch00002*.pt"))
    out = tmp_path / "evaluated"
    words = [*arguments(data, config, out), "--checkpoint", str(checkpoint)]
    assert main(["evaluate", *words]) == 0
    mine, theirs = (json.loads((run / "results.json").read_text()) for run in (out, finished))
    assert mine["clean"] == theirs["clean"]
    assert mine["attacks"] == theirs["attacks"]
    # Opened again, as transfer does it, it is the same model.
    jobs = [
        open_job(load_config(run / "config.yaml", ["OUTPUT_DIR", str(run)]), CPU)[0]
        for run in (out, finished)
    ]
    assert jobs[0].weights == jobs[1].weights


def test_another_method_and_list_do_not_stop_an_evaluation(data, config, finished, tmp_path):
    """Only the encoder counts, not what the training remembered of its videos."""
    (checkpoint,) = list((finished / "checkpoints").glob("epoch00002*.pt"))
    words = ["METHOD.NAME", "byol", "FALSE_NEGATIVES.DETECTOR", "none", "ATTACK.RUNS", "[]"]
    words += ["CORRUPT.NAMES", "[]"]
    out = tmp_path / "evaluated"
    command = [*arguments(data, config, out, *words), "--checkpoint", str(checkpoint)]
    assert main(["evaluate", *command]) == 0
    mine, theirs = (json.loads((run / "results.json").read_text()) for run in (out, finished))
    assert mine["clean"] == theirs["clean"]


def test_an_earlier_run_starts_one_on_longer_clips_and_stays_itself(data, config, tmp_path, capsys):
    few = ("DATA.TEST_LIST", "", "METHOD.NAME", "moco_v2", "METHOD.QUEUE", 16, "TRAIN.EPOCHS", 1)
    few += ("MODEL.NAME", "video_vit_s", "MODEL.POSITIONS", "learned", "MODEL.DEPTH", 1)
    few += ("MODEL.WIDTH", 24, "MODEL.FRAME_SIZE", 32)
    first = arguments(data, config, tmp_path / "first", *few)
    longer = ("DATA.FRAMES", 6, "TRAIN.WEIGHTS")
    second = arguments(data, config, tmp_path / "second", *few, *longer)
    assert main(["train", *first]) == 0
    assert main(["train", *second, str(newest(tmp_path / "first"))]) == 0
    said = "positions interpolated from 2 x 2 x 2 to 3 x 2 x 2"
    assert capsys.readouterr().err.count(said) == 1
    # An evaluation with other clips leaves its config in the folder; the training is still itself.
    assert main(["evaluate", *first, "DATA.FRAMES", "6"]) == 0
    assert said in capsys.readouterr().err
    assert main(["train", *first, "--resume"]) == 0
    assert "DATA.FRAMES changed" in fails(capsys, "train", *first, "DATA.FRAMES", "6", "--resume")


def test_trackers_are_told_of_the_results(data, config, finished, tmp_path, monkeypatch):
    out, told = shutil.copytree(finished, tmp_path / "run"), {}

    class Tracker:
        def log(self, values, *, step):
            told.update(values)

        def close(self):
            told["closed"] = True

    monkeypatch.setitem(TRACKERS, "tensorboard", lambda run: Tracker())
    words = ("LOG.TRACKERS", "[tensorboard]", "CORRUPT.NAMES", "[]")
    assert main(["evaluate", *arguments(data, config, out, *words)]) == 0
    results = json.loads((out / "results.json").read_text())
    assert told["results/clean/linear_top1"] == results["clean"]["linear_top1"]
    assert told["results/clean/retrieval/R@1"] == results["clean"]["retrieval"]["R@1"]
    assert told["results/attacks/pgd_linf/1/255"] == results["attacks"]["pgd_linf"]["1/255"]
    assert told["closed"]


def test_a_finished_evaluation_is_not_run_again(data, config, finished, tmp_path, monkeypatch):
    out = shutil.copytree(finished, tmp_path / "run")
    (out / "results.json").unlink()

    def kept():
        found = {path.name: path.stat().st_mtime_ns for path in (out / "artifacts").iterdir()}
        return {name: time for name, time in found.items() if not name.startswith("projection")}

    before = kept()

    def refuse(*_, **__):
        raise AssertionError("computed again")

    monkeypatch.setattr("vidcsl.robustness.attack_curve.attack_batch", refuse)
    monkeypatch.setattr("vidcsl.stages.attack.check_attack", refuse)
    monkeypatch.setattr("vidcsl.stages.job.extract_features", refuse)
    monkeypatch.setattr("vidcsl.stages.job.fit_linear_probe", refuse)
    assert main(["evaluate", *arguments(data, config, out, "CORRUPT.NAMES", "[]")]) == 0
    mine, theirs = (json.loads((run / "results.json").read_text()) for run in (out, finished))
    for section in mine:
        if section.startswith(("attack", "survival", "clean", "geometry")):
            assert mine[section] == theirs[section], section
    assert mine["cost"]["seconds"]["pgd_linf"] == theirs["cost"]["seconds"]["pgd_linf"]
    assert kept() == before
    assert len(before) >= 3


def test_attacks_on_videos_and_on_neighbours(data, config, finished, tmp_path):
    out = shutil.copytree(finished, tmp_path / "run")
    words = ("ATTACK.TARGETS", "[classifier, knn, retrieval]", "ATTACK.INPUT", "video")
    words += ("ATTACK.RUNS", "[pgd/linf]", "CORRUPT.NAMES", "[]", "EVALUATE.CROPS", 3)
    assert main(["evaluate", *arguments(data, config, out, *words)]) == 0
    results = json.loads((out / "results.json").read_text())
    clean = {name: found["clean"] for name, found in results["attack_settings"].items()}
    expected = {
        "pgd_linf_video": results["clean"]["linear_top1"],
        "pgd_linf_video_knn": results["clean"]["knn_top1"],
        "pgd_linf_video_retrieval": results["clean"]["retrieval"]["R@1"],
    }
    # Evaluation rounds resized frames to 8 bits, the attacked function may not: a clip apart.
    assert clean == pytest.approx(expected, abs=1 / results["clean"]["test_videos"])
    for name, found in results["attack_classes"].items():
        assert sum(found["clips"]) == results["clean"]["test_videos"]
        assert sum(found["8/255"]) < sum(found["clean"]), name


def test_universal_perturbations_of_whole_videos_are_refused(
    data, config, finished, tmp_path, capsys
):
    out = shutil.copytree(finished, tmp_path / "run")
    words = ("ATTACK.INPUT", "video", "CORRUPT.NAMES", "[]")
    assert main(["evaluate", *arguments(data, config, out, *words)]) == 2
    assert "universal=yes,eps=8': universal perturbations are fitted" in capsys.readouterr().err


def test_attacks_through_random_preprocessing(data, config, finished, tmp_path):
    out = shutil.copytree(finished, tmp_path / "run")
    words = ("ATTACK.PREPROCESSING", "crop", "ATTACK.DRAWS", 2, "ATTACK.INPUT", "frames")
    words += ("ATTACK.MAX_CLIPS", 4, "CORRUPT.NAMES", "[]", "ATTACK.EXAMPLES", 1)
    words += ("ATTACK.RUNS", "[pgd/linf]")
    assert main(["evaluate", *arguments(data, config, out, *words)]) == 0
    results = json.loads((out / "results.json").read_text())
    assert list(results["attacks"]) == ["pgd_linf_frames_random_crop"]
    assert results["attack_settings"]["pgd_linf_frames_random_crop"]["clips"] == 4


@pytest.mark.parametrize(
    ("name", "detector", "treatment", "judge", "voters"),
    [
        ("moco_v2", "glofnd", "weight", "online", 1),
        ("simclr", "clusters", "eliminate", "momentum", 0),
        ("byol", "none", "eliminate", "online", 0),
        ("swav", "none", "eliminate", "online", 0),
    ],
)
def test_the_state_of_any_method_survives_a_stop(
    data, config, tmp_path, monkeypatch, name, detector, treatment, judge, voters
):
    words = ["METHOD.NAME", name, "METHOD.QUEUE", 20, "FALSE_NEGATIVES.DETECTOR", detector]
    words += ["FALSE_NEGATIVES.TREATMENT", treatment, "FALSE_NEGATIVES.JUDGE", judge]
    words += ["FALSE_NEGATIVES.VOTERS", voters, "FALSE_NEGATIVES.START", 0.3]
    words += ["FALSE_NEGATIVES.CLUSTERS", "[4, 2]", "FALSE_NEGATIVES.CEILING", 0.4]
    words += ["FALSE_NEGATIVES.RAMP", 0]
    words += ["METHOD.PROTOTYPES", 6, "DATA.TEST_LIST", ""]
    runs = {run: arguments(data, config, tmp_path / run, *words) for run in ("whole", "stopped")}
    assert main(["train", *runs["whole"]]) == 0
    stop_after(4, monkeypatch, runs["stopped"])  # in the second epoch
    assert main(["train", *runs["stopped"], "--resume"]) == 0
    assert losses(tmp_path / "whole") == losses(tmp_path / "stopped")
    one, other = (weights(tmp_path / run) for run in runs)
    assert all(torch.equal(one[key], other[key]) for key in one)
    results = [json.loads((tmp_path / run / "results.json").read_text()) for run in runs]
    assert results[0]["false_negatives"] == results[1]["false_negatives"]
    if detector != "none":
        assert results[0]["false_negatives"]["removed"] > 0
        assert set(results[0]["false_negatives"]["by_class"]) == {"sway", "bob", "rise", "blink"}


@pytest.fixture(scope="session")
def another(data, config, tmp_path_factory):
    """A model that knows what it does, of another frame size."""
    out = tmp_path_factory.mktemp("another") / "run"
    words = (
        "METHOD.NAME",
        "supervised",
        "NAME",
        "other",
        "TRAIN.EPOCHS",
        12,
        "CORRUPT.NAMES",
        "[]",
    )
    words += ("ATTACK.RUNS", "[]", "MODEL.FRAME_SIZE", 20, "SEED", 3, "TRAIN.LR", 0.01)
    words += ("FALSE_NEGATIVES.DETECTOR", "none")
    assert main(["train", *arguments(data, config, out, *words)]) == 0
    return out


def test_attacked_clips_are_kept_and_tried_on_other_models(
    data, config, finished, another, tmp_path, capsys
):
    clips, numbers = tmp_path / "clips", tmp_path / "transfer.json"
    cfg = ["--cfg", str(another / "config.yaml"), "OUTPUT_DIR", str(another)]
    words = ("ATTACK.RUNS", "[pgd/linf, random_noise/linf:eps=1]", "ATTACK.INPUT", "frames")
    words = [*cfg, *words, "ATTACK.QUANTISE", "true", "--out", str(clips)]
    capsys.readouterr()
    assert main(["attack", *words]) == 0
    places = [str(Path(line).relative_to(clips)) for line in capsys.readouterr().out.splitlines()]
    attack, noise = "pgd_linf_frames", "random_noise_linf_eps=1_frames"
    heads = [f"{attack}/1_255", f"{attack}/8_255"]
    heads += [place.replace("/", "_own_head/") for place in heads]
    assert places == ["clean", *heads, f"{noise}/1_255", f"{noise}_own_head/1_255"]
    files = {path: path.stat().st_mtime_ns for path in clips.rglob("*.mkv")}
    assert len(files) == len(places) * 8  # every test video, in 8 bits

    runs = ["--runs", str(finished), str(another), "--json", str(numbers)]
    assert main(["transfer", str(clips), *runs]) == 0
    found = json.loads(numbers.read_text())
    own = "other seed3"
    assert found["models"] == ["run seed0", own, "other_own_head seed3"]
    by_place = {str(Path(row["path"]).relative_to(clips)): row for row in found["sets"]}
    for place, row in by_place.items():
        described = json.loads((clips / place / "set.json").read_text())
        named = [clip["prediction"] == clip["label"] for clip in described["clips"]]
        assert row["results"][row["model"]]["accuracy"] == sum(named) / 8  # as when it was attacked
    strong, weak = (by_place[f"{name}"]["results"][own] for name in (heads[1], f"{noise}/1_255"))
    assert strong["accuracy"] < strong["clean"]
    assert strong["fooled"] > weak["fooled"]
    assert "pgd/linf | 8/255 |" in capsys.readouterr().out

    (clips / heads[1] / "set.json").unlink()  # as if it had been killed
    assert main(["attack", *words]) == 0
    assert {path: path.stat().st_mtime_ns for path in clips.rglob("*.mkv")} == files
    assert main(["transfer", str(clips), *runs]) == 0
    assert json.loads(numbers.read_text()) == found


def test_mistakes_with_attacked_clips_are_one_line(data, config, finished, tmp_path, capsys):
    run = ["--runs", str(finished)]
    assert "vidcsl attack" in fails(capsys, "transfer", str(tmp_path), *run)
    words = arguments(data, config, tmp_path / "none")
    assert "train first" in fails(capsys, "attack", *words, "--out", str(tmp_path / "clips"))


def test_methods_by_name(data, config, tmp_path):
    for name in ("supervised", "supcon"):
        out = tmp_path / name
        words = ("METHOD.NAME", name, "FALSE_NEGATIVES.DETECTOR", "none", "TRAIN.EPOCHS", 1)
        words += ("CORRUPT.NAMES", "[]")
        assert main(["train", *arguments(data, config, out, *words)]) == 0
        results = json.loads((out / "results.json").read_text())
        assert ("own_head_top1" in results["clean"]) == (name == "supervised")
        assert ("pgd_linf_own_head" in results["attacks"]) == (name == "supervised")


def test_a_damaged_video_is_replaced_counted_and_named(data, config, finished, tmp_path, capsys):
    rows = read_rows(data / "train.csv")
    broken = tmp_path / "broken.mp4"
    broken.write_bytes((data / rows[0].video).read_bytes()[:200])
    listed = tmp_path / "train.csv"
    write_list(listed, [*rows, Row(str(broken), rows[0].class_name, "broken")])
    base = ("DATA.TRAIN_LIST", listed, "DATA.TEST_LIST", "", "TRAIN.EPOCHS", 3)
    out = tmp_path / "run"
    allowed = arguments(data, config, out, *base, "DATA.DAMAGED_LIMIT", "0.1")
    assert main(["train", *allowed]) == 0
    results = json.loads((out / "results.json").read_text())
    assert results["training"]["damaged_videos"] == [str(broken)]
    assert results["training"]["readers"] == ["pyav"]
    assert sum("damaged" in line for line in (out / "log.jsonl").read_text().splitlines()) == 1

    strict = arguments(data, config, tmp_path / "strict", *base, "DATA.DAMAGED_LIMIT", 0)
    message = fails(capsys, "train", *strict)
    assert "1 damaged videos" in message
    assert str(broken) in message
    assert list((tmp_path / "strict" / "checkpoints").glob("*.pt"))  # nothing is lost


def test_a_damaged_test_video_stops_the_run_unless_allowed(data, config, tmp_path, capsys):
    rows = read_rows(data / "test.csv")
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"nothing" * 50)
    listed = tmp_path / "test.csv"
    write_list(listed, [*rows, Row(str(broken), rows[0].class_name, "broken")])
    words = ("DATA.TEST_LIST", listed, "TRAIN.EPOCHS", 1, "ATTACK.RUNS", "[]")
    words += ("CORRUPT.NAMES", "[]")
    out = tmp_path / "run"
    assert "broken.mp4" in fails(capsys, "train", *arguments(data, config, out, *words))
    again = arguments(data, config, out, *words, "DATA.ALLOW_DAMAGED_TEST", "true")
    assert main(["train", *again, "--resume"]) == 0
    results = json.loads((out / "results.json").read_text())
    assert results["clean"]["test_videos"] == len(rows)
    assert results["data"]["left_out"] == [str(broken)]


def test_mistakes_are_one_line(data, config, finished, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    (tmp_path / "empty.csv").write_text("video,class,group\n")
    (tmp_path / "columns.csv").write_text("video;label\na.mp4;1\n")
    (tmp_path / "gone.csv").write_text("video,class,group\ngone.mp4,sway,g\n")
    rows = read_rows(data / "train.csv")
    write_list(tmp_path / "groupless.csv", [rows[0]._replace(group=""), *rows[1:]])
    write_list(tmp_path / "classless.csv", [rows[0]._replace(class_name=""), *rows[1:]])
    by_label = ("FALSE_NEGATIVES.DETECTOR", "labels")
    out = tmp_path / "run"
    cases = [
        (("DATA.ROOT", tmp_path / "nowhere"), "nowhere"),
        (("DATA.ROOT", ""), "DATA.ROOT is not set"),
        (("DATA.TRAIN_LIST", tmp_path / "none.csv"), "none.csv"),
        (("DATA.TRAIN_LIST", tmp_path / "empty.csv"), "empty.csv"),
        (("DATA.TRAIN_LIST", tmp_path / "columns.csv"), "columns.csv"),
        (("DATA.TRAIN_LIST", tmp_path / "gone.csv"), "gone.mp4"),
        (("DATA.SHORT_VIDEO", "error", "DATA.FRAMES", 64), "DATA.SHORT_VIDEO"),
        (("DATA.CLIPS", 1), "DATA.CLIPS"),
        (("METHOD.NAME", "byol"), "FALSE_NEGATIVES.DETECTOR"),
        (("METHOD.NAME", "moco_v2", "METHOD.QUEUE", 15), "METHOD.QUEUE is 15"),
        (
            ("FALSE_NEGATIVES.DETECTOR", "clusters", "FALSE_NEGATIVES.CLUSTERS", "[2, 4]"),
            "CLUSTERS",
        ),
        (("DATA.TRAIN_LIST", tmp_path / "groupless.csv"), "group of every video"),
        (("DATA.TRAIN_LIST", tmp_path / "classless.csv", *by_label), "needs labels"),
        (("TRAIN.BATCH", 4096), "4096"),
        (("TRAIN.EPOCH", 1), "did you mean TRAIN.EPOCHS"),
        (("AUGMENT.CROP_AREA", "[0.5]"), "AUGMENT.CROP_AREA"),
        (("ATTACK.RUNS", "[pgd/l7]"), "unknown 'l7'"),
        (("ATTACK.RUNS", "[pgd/linf:frames=every]"), "every"),
        (("ATTACK.TARGETS", "[knnn]"), "ATTACK.TARGETS"),
        (("CORRUPT.NAMES", "[gaussian_nose]"), "gaussian_noise"),
        (("TRAIN.LR", 1e30, "TRAIN.WARMUP_EPOCHS", 0, "TRAIN.OPTIMISER", "sgd"), "not finite"),
        (("TRAIN.WEIGHTS", tmp_path / "none.pt"), "none.pt"),
        (("OUTPUT_DIR", tmp_path / "file" / "run"), "file/run"),
    ]
    for number, (overrides, expected) in enumerate(cases):
        place = () if "OUTPUT_DIR" in overrides else ("OUTPUT_DIR", out / str(number))
        words = arguments(data, config, out, *place, *overrides)
        assert expected in fails(capsys, "train", *words), overrides

    here = arguments(data, config, finished)
    assert "--resume" in fails(capsys, "train", *here)
    changed = [*here, "TRAIN.LR", "0.5", "--resume"]
    assert "TRAIN.LR changed" in fails(capsys, "train", *changed)
    other = [*arguments(data, config, finished), "MODEL.WIDTH", "8"]
    assert "another architecture" in fails(capsys, "evaluate", *other)
    assert "train first" in fails(capsys, "evaluate", *arguments(data, config, out / "none"))


def test_mistakes_of_attack_and_corruption_names_come_before_training(
    data, config, tmp_path, capsys
):
    out = tmp_path / "run"
    fails(capsys, "train", *arguments(data, config, out, "CORRUPT.NAMES", "[gaussian_nose]"))
    assert not (out / "log.jsonl").exists()


def test_overrides_may_stand_anywhere(data, config, tmp_path, capsys):
    words = ["--cfg", str(config), "--debug", "SEED", "x"]
    assert "SEED must be int" in fails(capsys, "train", *words)
    words = ["SEED", "x", "--cfg", str(config)]
    assert "SEED must be int" in fails(capsys, "train", *words)


def test_foreign_weights_are_probed_attacked_and_corrupted_in_one_command(
    data, config, finished, tmp_path, capsys
):
    (checkpoint,) = list((finished / "checkpoints").glob("epoch00002*.pt"))
    out = tmp_path / "foreign"
    words = arguments(data, config, out, "MODEL.DUAL_NORM", "true", *REPORT)
    assert main(["evaluate", *words, "--weights", f"vidcsl:{checkpoint}"]) == 0
    said = capsys.readouterr().err
    assert "left out, heads and what else was trained beside it: projector." in said
    assert "BatchNorms copied to every set" in said
    mine, theirs = (json.loads((run / "results.json").read_text()) for run in (out, finished))
    assert mine["method"] == "vidcsl"
    told = (mine["clean"], mine["corruptions"], *mine["attack_settings"].values())
    assert {section.pop("norms") for section in told} == {"clean"}
    assert mine["clean"] == theirs["clean"]
    assert mine["attacks"] == theirs["attacks"]
    assert mine["corruptions"] == theirs["corruptions"]
    assert "BatchNorms copied" in (out / "log.jsonl").read_text()
    assert "BatchNorms copied" in (out / "report.html").read_text()
    assert main(["corrupt", *words, "--weights", f"vidcsl:{checkpoint}"]) == 0
    again = json.loads((out / "results.json").read_text())["corruptions"]
    assert again == {**mine["corruptions"], "norms": "clean"}
    both = ["--weights", f"vidcsl:{checkpoint}", "--checkpoint", str(checkpoint)]
    assert "--weights or --checkpoint" in fails(capsys, "evaluate", *words, *both)
    wrong = ["--weights", f"pyslowfast:{checkpoint}"]
    assert "fit slow_r50, not MODEL.NAME" in fails(capsys, "evaluate", *words, *wrong)
    clips, numbers = tmp_path / "clips", tmp_path / "transfer.json"
    few = ["ATTACK.RUNS", "[pgd/linf]", "ATTACK.EPS_LINF", "[8]", "ATTACK.MAX_CLIPS", "4"]
    few += ["--weights", f"vidcsl:{checkpoint}", "--out", str(clips)]
    assert main(["attack", *words, *few]) == 0
    # A run that was evaluated from foreign weights is one of the models as any other.
    assert main(["transfer", str(clips), "--runs", str(out), "--json", str(numbers)]) == 0
    (row,) = json.loads(numbers.read_text())["sets"]
    described = json.loads((clips / "pgd_linf" / "8_255" / "set.json").read_text())
    named = [clip["prediction"] == clip["label"] for clip in described["clips"]]
    assert row["results"][row["model"]]["accuracy"] == sum(named) / 4
    assert row["model"] == "run seed0 clean norms"


def test_every_part_of_an_evaluation_uses_the_norms_that_are_named(
    data, config, finished, tmp_path, capsys
):
    words = arguments(data, config, tmp_path / "run", "MODEL.DUAL_NORM", "true", *REPORT)
    cfg = load_config(words[1], words[2:])
    encoder = builders.build_encoder(cfg)
    load_pretrained(encoder, parse_weights(f"vidcsl:{newest(finished)}"), name=cfg.MODEL.NAME)
    for name, tensor in encoder.state_dict().items():
        if ".norms.adversarial." in name and name.endswith((".weight", ".bias")):
            tensor.fill_(name.endswith(".bias"))  # this set is blind: all clips look alike
    torch.save(encoder.state_dict(), tmp_path / "dual.pt")
    words += ["FINETUNE.ENABLED", "true", "FINETUNE.EPOCHS", "1", "FINETUNE.BATCH", "8"]
    words += ["ATTACK.RUNS", "[pgd/linf]", "CORRUPT.NAMES", "[gaussian_noise]"]
    words += ["ROBUST.PROTOCOLS", "[alf, aff]", "ROBUST.EPOCHS", "1", "ROBUST.BATCH", "8"]
    words += ["ROBUST.STEPS", "1"]
    weights = ["--weights", f"vidcsl:{tmp_path / 'dual.pt'}"]
    found = {}
    for name in ("clean", "adversarial"):  # one folder: what is kept of one set is not the other's
        assert main(["evaluate", *words, "EVALUATE.NORMS", name, *weights]) == 0
        found[name] = json.loads((tmp_path / "run" / "results.json").read_text())
        told = (found[name]["clean"], found[name]["corruptions"])
        for protocol in ("alf", "aff"):
            told += (found[name]["robust"][protocol]["corruptions"],)
            told += (found[name]["attack_settings"][f"pgd_linf_{protocol}"],)
            assert 0 <= found[name]["clean"][f"{protocol}_top1"] <= 1
        assert {part["norms"] for part in told} == {name}
        assert f"{name} BatchNorms" in (tmp_path / "run" / "report.html").read_text()
    theirs = json.loads((finished / "results.json").read_text())
    assert found["clean"]["attacks"]["pgd_linf"] == theirs["attacks"]["pgd_linf"]
    blind = found["adversarial"]
    assert blind["geometry"]["effective_rank"] == pytest.approx(1, abs=1e-3)
    assert found["clean"]["geometry"]["effective_rank"] > 1.5
    for part in (blind["clean"]["linear_top1"], blind["corruptions"]["clean"]):
        assert part == blind["data"]["chance"]
    assert set(blind["attacks"]["pgd_linf"].values()) == {blind["data"]["chance"]}
    assert len(list((tmp_path / "run" / "finetune").iterdir())) == 2
    wrong = arguments(data, config, tmp_path / "one", "EVALUATE.NORMS", "other")
    assert "has each BatchNorm once" in fails(capsys, "train", *wrong)
    dual = ["MODEL.DUAL_NORM", "true"]
    assert "has the sets clean, adversarial" in fails(capsys, "train", *wrong, *dual)


def test_protocols_beyond_the_first_split(data, config, finished, tmp_path, capsys):
    (checkpoint,) = list((finished / "checkpoints").glob("epoch00002*.pt"))
    out, lists = tmp_path / "run", f"{data / 'train.csv'},{data / 'test.csv'}"
    swapped = f"{data / 'test.csv'},{data / 'train.csv'}"
    words = arguments(
        *(data, config, out),
        *("EVALUATE.SPLITS", f"['{swapped}']", "EVALUATE.TRANSFER", f"['same,{data},{lists}']"),
        *("FINETUNE.ENABLED", "true", "FINETUNE.EPOCHS", 1, "FINETUNE.BATCH", 8),
        *("EVALUATE.LOW_SHOT", "[0.5, 1]", "ATTACK.RUNS", "[]", "CORRUPT.NAMES", "[]", *REPORT),
    )
    assert main(["evaluate", *words, "--checkpoint", str(checkpoint)]) == 0
    results = json.loads((out / "results.json").read_text())
    clean = results["clean"]
    same = results["transfer"]["same"]
    assert same["linear_top1"] == clean["linear_top1"]
    assert same["retrieval"] == clean["retrieval"]
    first, second = results["splits"]["each"]
    assert first == {**clean, "low_shot": first["low_shot"]}
    assert second["test_videos"] == results["data"]["train_videos"]
    for key in ("linear_top1", "linear_clip_top1", "knn_top1", "finetune_top1"):
        for found in (clean, second):
            low, high = found["intervals"][key]
            assert 0 <= low <= found[key] <= high <= 1
        assert results["splits"]["mean"][key] == pytest.approx((first[key] + second[key]) / 2)
    assert clean["low_shot"]["1"]["videos"] == results["data"]["train_videos"]
    few = clean["low_shot"]["0.5"]
    assert len(few["draws"]) == 3
    low, high = few["intervals"]["top1"]
    assert 0 <= low <= few["top1"] <= high <= 1
    halves = [each["low_shot"]["0.5"]["top1"] for each in (first, second)]
    assert results["splits"]["mean"]["low_shot_0.5_top1"] == pytest.approx(sum(halves) / 2)
    assert len(list((out / "finetune").iterdir())) == 2  # a training of its own on each
    page = (out / "report.html").read_text()
    assert "mean of 2 splits" in page
    assert "Linear probe on 50" in page
    wrong = [*words, "EVALUATE.CROPS", "1"]
    wrong[wrong.index("EVALUATE.SPLITS") + 1] = "[only.csv]"
    assert "must be TRAIN_LIST,TEST_LIST" in fails(capsys, "evaluate", *wrong)


def test_finetuning_and_the_attentive_probe(data, config, finished, tmp_path):
    (checkpoint,) = list((finished / "checkpoints").glob("epoch00002*.pt"))
    out = tmp_path / "run"
    words = arguments(
        *(data, config, out, "ATTACK.RUNS", "[]", "CORRUPT.NAMES", "[]", "SEED", 1),
        *("EVALUATE.ATTENTIVE", "true", "EVALUATE.ATTENTIVE_EPOCHS", 2, "EVALUATE.TOKENS", 4),
        *("FINETUNE.ENABLED", "true", "FINETUNE.EPOCHS", 2, "FINETUNE.BATCH", 8),
        *("FINETUNE.MIXUP", "0.2", *REPORT),
    )
    command = ["evaluate", *words, "--checkpoint", str(checkpoint)]
    assert main(command) == 0
    clean = json.loads((out / "results.json").read_text())["clean"]
    for name in ("attentive", "finetune"):
        low, high = clean["intervals"][f"{name}_top1"]
        assert 0 <= low <= clean[f"{name}_top1"] <= high <= 1
        assert 0 <= clean[f"{name}_clip_top1"] <= 1
    theirs = json.loads((finished / "results.json").read_text())["clean"]
    assert clean["knn_top1"] == theirs["knn_top1"]  # the encoder itself stays frozen
    page = (out / "report.html").read_text()
    assert "Fine-tuned, whole videos" in page
    assert "Attentive probe, single clips" in page
    (log,) = out.glob("finetune/*/log.jsonl")
    trained = log.read_text()
    assert main(command) == 0
    assert log.read_text() == trained  # finished once, found again
    assert json.loads((out / "results.json").read_text())["clean"] == clean
