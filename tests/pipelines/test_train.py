"""`vidcsl train` on a tiny rendered set: stops, resumes, processes, rounds."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.tiny_job import arguments, fails, final, losses, newest, results_of, stop_after, weights
from vidcsl.cli import main
from vidcsl.options import OPTIONS
from vidcsl.pipelines.train import FREE, TRAINING
from vidcsl.training.checkpoint import load_newest

ROOT = Path(__file__).parents[2]


def test_a_run_writes_its_results_report_and_environment(finished):
    names = {path.name for path in finished.iterdir()}
    assert {"config.yaml", "log.jsonl", "results.json", "report.html", "environment.json"} <= names
    results = results_of(finished)
    assert set(results["clean"]["retrieval"]) == {"R@1", "R@5", "R@10", "R@20"}
    by_class = results["false_negatives"]["by_class"]
    assert {shares["precision"] for shares in by_class.values()} - {None} == {1}
    assert "<h3>Classes on the map</h3>" in (finished / "report.html").read_text()
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
    mine, theirs = (results_of(run) for run in (out, finished))
    for section in ("clean", "attacks", "corruptions", "false_negatives", "geometry"):
        assert mine[section] == theirs[section]


@pytest.mark.parametrize(
    ("name", "detector", "treatment", "judge", "voters"),
    [
        ("moco_v2", "glofnd", "weight", "online", 1),
        ("simclr", "clusters", "eliminate", "momentum", 0),
        ("byol", "none", "eliminate", "online", 0),
        ("swav", "none", "eliminate", "online", 0),
        ("lejepa", "none", "eliminate", "online", 0),
    ],
)
def test_every_method_resumes_bit_for_bit(
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
    results = [results_of(tmp_path / run) for run in runs]
    assert results[0]["false_negatives"] == results[1]["false_negatives"]
    if detector != "none":
        assert results[0]["false_negatives"]["removed"] > 0
        assert set(results[0]["false_negatives"]["by_class"]) == {"sway", "bob", "rise", "blink"}


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
    mine, theirs = (results_of(run) for run in (out, finished))
    assert mine.keys() == theirs.keys()
    assert mine["attack_settings"]["pgd_linf"]["clips"] == mine["data"]["test_videos"]
    assert mine["false_negatives"]["removed"] == theirs["false_negatives"]["removed"]

    # The same weights evaluated by one process give the same numbers, to the last bit.
    checkpoint = final(out)
    alone = tmp_path / "alone"
    words = arguments(data, config, alone, "ATTACK.RUNS", "[]", "CORRUPT.NAMES", "[]")
    assert main(["evaluate", *words, "--checkpoint", str(checkpoint)]) == 0
    single = results_of(alone)
    assert single["clean"] == mine["clean"]
    assert single["geometry"] == mine["geometry"]


def test_a_run_may_start_from_another_on_shorter_clips(data, config, tmp_path, capsys):
    few = ("METHOD.NAME", "moco_v2", "METHOD.QUEUE", 16, "TRAIN.EPOCHS", 1, "ATTACK.RUNS", "[]")
    few += ("MODEL.NAME", "video_vit_s", "MODEL.POSITIONS", "learned", "MODEL.DEPTH", 1)
    few += ("MODEL.WIDTH", 24, "MODEL.FRAME_SIZE", 32, "CORRUPT.NAMES", "[]")
    first = arguments(data, config, tmp_path / "first", *few)
    longer = ("DATA.FRAMES", 6, "TRAIN.WEIGHTS")
    second = arguments(data, config, tmp_path / "second", *few, *longer)
    assert main(["train", *first]) == 0
    assert main(["train", *second, str(newest(tmp_path / "first"))]) == 0
    note = "positions interpolated from 2 x 2 x 2 to 3 x 2 x 2"
    assert capsys.readouterr().err.count(note) == 1
    # An evaluation with other clips leaves its config in the folder; the run resumes with its own.
    assert main(["evaluate", *first, "DATA.FRAMES", "6"]) == 0
    assert note in capsys.readouterr().err
    assert main(["train", *first, "--resume"]) == 0
    assert "DATA.FRAMES changed" in fails(capsys, "train", *first, "DATA.FRAMES", "6", "--resume")


def test_only_supervised_runs_report_and_attack_their_own_head(data, config, tmp_path):
    for name in ("supervised", "supcon"):
        out = tmp_path / name
        words = ("METHOD.NAME", name, "FALSE_NEGATIVES.DETECTOR", "none", "TRAIN.EPOCHS", 1)
        words += ("CORRUPT.NAMES", "[]")
        assert main(["train", *arguments(data, config, out, *words)]) == 0
        results = results_of(out)
        assert ("own_head_top1" in results["clean"]) == (name == "supervised")
        assert ("pgd_linf_own_head" in results["attacks"]) == (name == "supervised")


# Sections that decide nothing of the weights.
AFTERWARDS = {"EVALUATE", "FINETUNE", "ROBUST", "ATTACK", "CORRUPT", "REPORT"}
AROUND = {"NAME", "OUTPUT_DIR", "DEVICE", "LOG", "GUARD", "FIT"}


def test_every_section_of_the_config_decides_the_weights_or_is_known_not_to():
    assert {key.partition(".")[0] for key in OPTIONS} == {*TRAINING} | AFTERWARDS | AROUND
    assert not {*TRAINING} & (AFTERWARDS | AROUND)
    assert {key.partition(".")[0] for key in FREE} <= {*TRAINING}


# Iterative training.

MEMORY = ("FALSE_NEGATIVES.DETECTOR", "memory", "FALSE_NEGATIVES.CEILING", 0.3)
MEMORY += ("FALSE_NEGATIVES.START", 0.6, "FALSE_NEGATIVES.RAMP", 0, "DATA.TEST_LIST", "")
ROUNDS = (*MEMORY, "FALSE_NEGATIVES.ROUNDS", 2)


@pytest.fixture(scope="module")
def whole_rounds(data, config, tmp_path_factory):
    out = tmp_path_factory.mktemp("rounds") / "run"
    assert main(["train", *arguments(data, config, out, *ROUNDS)]) == 0
    return out


def test_the_first_round_trains_like_any_run_and_its_memory_bank_flags_in_the_second(
    data, config, whole_rounds, tmp_path
):
    alone = tmp_path / "alone"
    assert main(["train", *arguments(data, config, alone, *MEMORY)]) == 0
    first = whole_rounds / "rounds/1"
    assert losses(first) == losses(alone)
    assert losses(whole_rounds)[1] != losses(first)[1]  # flags pairs from its first step on
    memory = weights(first)["detector.memory"]
    assert torch.equal(weights(whole_rounds)["detector.earlier_memory"], memory)
    seconds = results_of(whole_rounds)["cost"]["seconds"]
    earlier = results_of(first)["cost"]["seconds"]["pretraining"]
    assert seconds["earlier rounds"] == earlier > 0


@pytest.mark.parametrize("steps", [4, 8], ids=["in the first", "in the second"])
def test_stopping_and_resuming_in_any_round_changes_nothing(
    data,
    config,
    whole_rounds,
    tmp_path,
    monkeypatch,
    capsys,
    steps,
):
    out = tmp_path / "stopped"
    words = arguments(data, config, out, *ROUNDS)
    stop_after(steps, monkeypatch, words)
    assert "already holds a run" in fails(capsys, "train", *words)
    changed = [*words, "TRAIN.LR", "0.5", "--resume"]
    assert "TRAIN.LR changed since it was started" in fails(capsys, "train", *changed)
    assert main(["train", *words, "--resume"]) == 0
    assert losses(out) == losses(whole_rounds)
    one, other = weights(out), weights(whole_rounds)
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_earlier_rounds_may_use_another_method(data, config, whole_rounds, tmp_path, capsys):
    out, taught = tmp_path / "run", tmp_path / "taught"
    acl = ("METHOD.NAME", "acl", "ADVERSARIAL.STEPS", 1)
    words = (*ROUNDS, *acl, "FALSE_NEGATIVES.ROUNDS_METHOD", "simclr")
    assert main(["train", *arguments(data, config, out, *words)]) == 0
    assert losses(out / "rounds/1") == losses(whole_rounds / "rounds/1")
    words = (*MEMORY, *acl, "FALSE_NEGATIVES.TUTOR", newest(out / "rounds/1"))
    assert main(["train", *arguments(data, config, taught, *words)]) == 0
    assert losses(out) == losses(taught)
    for more, message in {
        (*MEMORY, "FALSE_NEGATIVES.ROUNDS_METHOD", "simclr"): "needs FALSE_NEGATIVES.ROUNDS above",
        (*ROUNDS, "FALSE_NEGATIVES.ROUNDS_METHOD", "byol"): "byol has no negatives",
    }.items():
        assert message in fails(capsys, "train", *arguments(data, config, tmp_path / "x", *more))


def test_the_memory_bank_of_another_run_serves_like_that_of_an_earlier_round(
    data, config, whole_rounds, tmp_path, capsys
):
    taught = tmp_path / "taught"
    words = (*MEMORY, "FALSE_NEGATIVES.TUTOR", newest(whole_rounds / "rounds/1"))
    assert main(["train", *arguments(data, config, taught, *words)]) == 0
    assert losses(taught) == losses(whole_rounds)  # as the second round was
    longer = arguments(data, config, tmp_path / "c", *words, "METHOD.PROJECTOR_DIM", 5)
    assert "give the same list and METHOD.PROJECTOR_DIM" in fails(capsys, "train", *longer)


def test_a_run_without_a_memory_bank_or_on_other_videos_is_refused(
    data, config, whole_rounds, tmp_path, capsys
):
    blank, renamed = tmp_path / "blank", data / "renamed.csv"
    assert main(["train", *arguments(data, config, blank, "DATA.TEST_LIST", "")]) == 0
    words = (*MEMORY, "FALSE_NEGATIVES.TUTOR", newest(blank))
    words = arguments(data, config, tmp_path / "run", *words)
    assert "has no memory bank: train it with" in fails(capsys, "train", *words)
    lines = (data / "train.csv").read_text().splitlines()
    renamed.write_text("\n".join([lines[0], *lines[:0:-1]]) + "\n")  # the same videos, reversed
    words = (*MEMORY, "FALSE_NEGATIVES.TUTOR", newest(whole_rounds), "DATA.TRAIN_LIST", renamed)
    said = fails(capsys, "train", *arguments(data, config, tmp_path / "run", *words))
    assert "was trained on another list of videos" in said


def test_rounds_need_the_memory_detector(data, config, tmp_path, capsys):
    words = ("FALSE_NEGATIVES.DETECTOR", "adaptive", "FALSE_NEGATIVES.ROUNDS", 2)
    said = fails(capsys, "train", *arguments(data, config, tmp_path / "run", *words))
    assert "ROUNDS above 1 and .TUTOR need FALSE_NEGATIVES.DETECTOR memory" in said


def test_scores_while_training_choose_the_checkpoint_and_change_no_weight(
    data, config, finished, tmp_path, capsys
):
    out = tmp_path / "scored"
    words = ("EVALUATE.EVERY", 1, "TRAIN.KEEP_EVERY", 1, "EVALUATE.CHECKPOINT", "rankme")
    assert main(["train", *arguments(data, config, out, *words)]) == 0
    assert losses(out) == losses(finished)
    said = capsys.readouterr().err
    lines = map(json.loads, (out / "log.jsonl").read_text().splitlines())
    scores = {line["epoch"]: line for line in lines if line["kind"] == "scores"}
    assert len(scores) >= 2
    assert all(line["knn_top1"] <= 1 for line in scores.values())
    best = max(scores, key=lambda epoch: scores[epoch]["rankme"])
    chosen = results_of(out)["chosen_checkpoint"]
    assert chosen["checkpoint"].startswith(f"epoch{best:05}_step000000")
    assert chosen["score"] == scores[best]["rankme"]
    assert f"evaluating {chosen['checkpoint']}" in said
    # A later evaluation takes the same weights, without being told.
    before = results_of(out)["clean"]["knn_top1"]
    assert main(["evaluate", "--cfg", str(out / "config.yaml"), "ATTACK.RUNS", "[]"]) == 0
    assert results_of(out)["clean"]["knn_top1"] == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("EVALUATE.CHECKPOINT", "lidar"), "set EVALUATE.EVERY and TRAIN.KEEP_EVERY to the same"),
        (("EVALUATE.EVERY", 1, "TRAIN.PARALLEL", "fsdp"), "does not go with TRAIN.PARALLEL fsdp"),
    ],
)
def test_scores_that_cannot_be_are_refused(data, config, tmp_path, capsys, words, message):
    assert main(["train", *arguments(data, config, tmp_path / "run", *words)]) == 2
    assert message in capsys.readouterr().err


def test_a_step_that_diverged_is_repeated_by_the_command(data, config, tmp_path, capsys):
    out = tmp_path / "run"
    words = arguments(
        data, config, out, "TRAIN.LR", 1e20, "TRAIN.OPTIMISER", "sgd", "GUARD.ROLLBACKS", 0
    )
    assert main(["train", *words]) == 2
    said = capsys.readouterr().err
    path = next((out / "replay").glob("*.json"))
    assert f"vidcsl replay {path}" in said
    files = {each: each.stat().st_mtime_ns for each in out.rglob("*")}
    assert main(["replay", str(path)]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("then: ")
    assert "not finite" in shown
    assert "its videos: " in shown
    assert {each: each.stat().st_mtime_ns for each in out.rglob("*")} == files
    assert main(["replay", str(out)]) == 2
    assert "is not a kept step" in capsys.readouterr().err
