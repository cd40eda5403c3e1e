"""Evaluation alone, through the command line: of runs, of foreign weights, by further protocols."""

import json
import shutil

import pytest
import torch

from tests.tiny_job import REPORT, arguments, fails, final, newest, results_of
from vidcsl.cli import main
from vidcsl.config import load_config
from vidcsl.distributed import DistributedContext
from vidcsl.models.pretrained import load_pretrained, parse_weights
from vidcsl.pipelines.context import load_context
from vidcsl.pipelines.model import build_encoder
from vidcsl.training.monitor import TRACKERS

CPU = DistributedContext(rank=0, size=1, device=torch.device("cpu"))


def test_evaluation_alone_from_a_checkpoint(data, config, finished, tmp_path):
    checkpoint = final(finished)
    out = tmp_path / "evaluated"
    words = [*arguments(data, config, out), "--checkpoint", str(checkpoint)]
    assert main(["evaluate", *words]) == 0
    mine, theirs = (results_of(run) for run in (out, finished))
    assert mine["clean"] == theirs["clean"]
    assert mine["attacks"] == theirs["attacks"]
    # Loaded again, as `vidcsl transfer` does, it is the same model.
    contexts = [
        load_context(load_config(run / "config.yaml", ["OUTPUT_DIR", str(run)]), CPU)[0]
        for run in (out, finished)
    ]
    assert contexts[0].weights == contexts[1].weights


def test_another_method_and_list_do_not_stop_an_evaluation(data, config, finished, tmp_path):
    """Only the encoder counts, not the memory bank of the training run."""
    checkpoint = final(finished)
    words = ["METHOD.NAME", "byol", "FALSE_NEGATIVES.DETECTOR", "none", "ATTACK.RUNS", "[]"]
    words += ["CORRUPT.NAMES", "[]"]
    out = tmp_path / "evaluated"
    command = [*arguments(data, config, out, *words), "--checkpoint", str(checkpoint)]
    assert main(["evaluate", *command]) == 0
    mine, theirs = (results_of(run) for run in (out, finished))
    assert mine["clean"] == theirs["clean"]


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
    monkeypatch.setattr("vidcsl.pipelines.attack.check_attack", refuse)
    monkeypatch.setattr("vidcsl.pipelines.context.extract_features", refuse)
    monkeypatch.setattr("vidcsl.pipelines.context.fit_linear_probe", refuse)
    assert main(["evaluate", *arguments(data, config, out, "CORRUPT.NAMES", "[]")]) == 0
    mine, theirs = (results_of(run) for run in (out, finished))
    for section in mine:
        if section.startswith(("attack", "survival", "clean", "geometry")):
            assert mine[section] == theirs[section], section
    assert mine["cost"]["seconds"]["pgd_linf"] == theirs["cost"]["seconds"]["pgd_linf"]
    assert kept() == before
    assert len(before) >= 3


def test_trackers_receive_the_results(data, config, finished, tmp_path, monkeypatch):
    out, told = shutil.copytree(finished, tmp_path / "run"), {}

    class Tracker:
        def log(self, values, *, step):
            told.update(values)

        def close(self):
            told["closed"] = True

    monkeypatch.setitem(TRACKERS, "tensorboard", lambda run: Tracker())
    words = ("LOG.TRACKERS", "[tensorboard]", "CORRUPT.NAMES", "[]")
    assert main(["evaluate", *arguments(data, config, out, *words)]) == 0
    results = results_of(out)
    assert told["results/clean/linear_top1"] == results["clean"]["linear_top1"]
    assert told["results/clean/retrieval/R@1"] == results["clean"]["retrieval"]["R@1"]
    assert told["results/attacks/pgd_linf/1/255"] == results["attacks"]["pgd_linf"]["1/255"]
    assert told["closed"]


def test_foreign_weights_are_probed_attacked_and_corrupted_in_one_command(
    data, config, finished, tmp_path, capsys
):
    checkpoint = final(finished)
    out = tmp_path / "foreign"
    words = arguments(data, config, out, "MODEL.DUAL_NORM", "true", *REPORT)
    assert main(["evaluate", *words, "--weights", f"vidcsl:{checkpoint}"]) == 0
    said = capsys.readouterr().err
    assert "left out, heads and other modules: projector." in said
    assert "BatchNorms copied to every set" in said
    mine, theirs = (results_of(run) for run in (out, finished))
    assert mine["method"] == "vidcsl"
    told = (mine["clean"], mine["corruptions"], *mine["attack_settings"].values())
    assert {section.pop("norms") for section in told} == {"clean"}
    assert mine["clean"] == theirs["clean"]
    assert mine["attacks"] == theirs["attacks"]
    assert mine["corruptions"] == theirs["corruptions"]
    assert "BatchNorms copied" in (out / "log.jsonl").read_text()
    assert "BatchNorms copied" in (out / "report.html").read_text()
    assert main(["corrupt", *words, "--weights", f"vidcsl:{checkpoint}"]) == 0
    again = results_of(out)["corruptions"]
    assert again == {**mine["corruptions"], "norms": "clean"}
    both = ["--weights", f"vidcsl:{checkpoint}", "--checkpoint", str(checkpoint)]
    assert "--weights or --checkpoint" in fails(capsys, "evaluate", *words, *both)
    wrong = ["--weights", f"pyslowfast:{checkpoint}"]
    assert "fit slow_r50, not MODEL.NAME" in fails(capsys, "evaluate", *words, *wrong)
    clips, numbers = tmp_path / "clips", tmp_path / "transfer.json"
    few = ["ATTACK.RUNS", "[pgd/linf]", "ATTACK.EPS_LINF", "[8]", "ATTACK.MAX_CLIPS", "4"]
    few += ["--weights", f"vidcsl:{checkpoint}", "--out", str(clips)]
    assert main(["attack", *words, *few]) == 0
    # A run that was evaluated from foreign weights is a model like any other.
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
    encoder = build_encoder(cfg)
    load_pretrained(encoder, parse_weights(f"vidcsl:{newest(finished)}"), name=cfg.MODEL.NAME)
    for name, tensor in encoder.state_dict().items():
        if ".norms.adversarial." in name and name.endswith((".weight", ".bias")):
            tensor.fill_(name.endswith(".bias"))  # this set maps all clips to one feature
    torch.save(encoder.state_dict(), tmp_path / "dual.pt")
    words += ["FINETUNE.ENABLED", "true", "FINETUNE.EPOCHS", "1", "FINETUNE.BATCH", "8"]
    words += ["ATTACK.RUNS", "[pgd/linf]", "CORRUPT.NAMES", "[gaussian_noise]"]
    words += ["ROBUST.PROTOCOLS", "[alf, aff]", "ROBUST.EPOCHS", "1", "ROBUST.BATCH", "8"]
    words += ["ROBUST.STEPS", "1"]
    weights = ["--weights", f"vidcsl:{tmp_path / 'dual.pt'}"]
    found = {}
    for name in ("clean", "adversarial"):  # in one folder: neither reuses the other's results
        assert main(["evaluate", *words, "EVALUATE.NORMS", name, *weights]) == 0
        folder = tmp_path / "run"
        if name == "adversarial":  # through other norms it is another model
            (folder,) = (tmp_path / "run" / "evaluations").iterdir()
        found[name] = results_of(folder)
        told = (found[name]["clean"], found[name]["corruptions"])
        for protocol in ("alf", "aff"):
            told += (found[name]["robust"][protocol]["corruptions"],)
            told += (found[name]["attack_settings"][f"pgd_linf_{protocol}"],)
            assert 0 <= found[name]["clean"][f"{protocol}_top1"] <= 1
        assert {part["norms"] for part in told} == {name}
        assert f"BatchNorm for {name} clips" in (folder / "report.html").read_text()
    theirs = results_of(finished)
    assert found["clean"]["attacks"]["pgd_linf"] == theirs["attacks"]["pgd_linf"]
    blind = found["adversarial"]
    assert blind["geometry"]["effective_rank"] == pytest.approx(1, abs=1e-3)
    assert found["clean"]["geometry"]["effective_rank"] > 1.01
    for part in (blind["clean"]["linear_top1"], blind["corruptions"]["clean"]):
        assert part == blind["data"]["chance"]
    assert set(blind["attacks"]["pgd_linf"].values()) == {blind["data"]["chance"]}
    assert len(list((tmp_path / "run").rglob("finetune/*"))) == 2
    wrong = arguments(data, config, tmp_path / "one", "EVALUATE.NORMS", "other")
    assert "has each BatchNorm once" in fails(capsys, "train", *wrong)
    dual = ["MODEL.DUAL_NORM", "true"]
    assert "has the sets clean, adversarial" in fails(capsys, "train", *wrong, *dual)


def test_protocols_beyond_the_first_split(data, config, finished, tmp_path, capsys):
    checkpoint = final(finished)
    out, lists = tmp_path / "run", f"{data / 'train.csv'},{data / 'test.csv'}"
    swapped = f"{data / 'test.csv'},{data / 'train.csv'}"
    words = arguments(
        *(data, config, out),
        *("EVALUATE.SPLITS", f"['{swapped}']", "EVALUATE.TRANSFER", f"['same,{data},{lists}']"),
        *("FINETUNE.ENABLED", "true", "FINETUNE.EPOCHS", 1, "FINETUNE.BATCH", 8),
        *("EVALUATE.LOW_SHOT", "[0.5, 1]", "ATTACK.RUNS", "[]", "CORRUPT.NAMES", "[]", *REPORT),
    )
    assert main(["evaluate", *words, "--checkpoint", str(checkpoint)]) == 0
    results = results_of(out)
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
    assert len(list((out / "finetune").iterdir())) == 2  # a training run on each
    page = (out / "report.html").read_text()
    assert "mean of 2 splits" in page
    assert "Linear probe on 50" in page
    wrong = [*words, "EVALUATE.CROPS", "1"]
    wrong[wrong.index("EVALUATE.SPLITS") + 1] = "[only.csv]"
    assert "must be TRAIN_LIST,TEST_LIST" in fails(capsys, "evaluate", *wrong)


def test_finetuning_and_the_attentive_probe(data, config, finished, tmp_path):
    checkpoint = final(finished)
    out = tmp_path / "run"
    words = arguments(
        *(data, config, out, "ATTACK.RUNS", "[]", "CORRUPT.NAMES", "[]", "SEED", 1),
        *("EVALUATE.ATTENTIVE", "true", "EVALUATE.ATTENTIVE_EPOCHS", 2, "EVALUATE.TOKENS", 4),
        *("FINETUNE.ENABLED", "true", "FINETUNE.EPOCHS", 2, "FINETUNE.BATCH", 8),
        *("FINETUNE.MIXUP", "0.2", *REPORT),
    )
    command = ["evaluate", *words, "--checkpoint", str(checkpoint)]
    assert main(command) == 0
    clean = results_of(out)["clean"]
    for name in ("attentive", "finetune"):
        low, high = clean["intervals"][f"{name}_top1"]
        assert 0 <= low <= clean[f"{name}_top1"] <= high <= 1
        assert 0 <= clean[f"{name}_clip_top1"] <= 1
    theirs = results_of(finished)["clean"]
    assert clean["knn_top1"] == theirs["knn_top1"]  # the encoder itself stays frozen
    page = (out / "report.html").read_text()
    assert "Fine-tuned, whole videos" in page
    assert "Attentive probe, single clips" in page
    (log,) = out.glob("finetune/*/log.jsonl")
    trained = log.read_text()
    assert main(command) == 0
    assert log.read_text() == trained  # finished once, found again
    assert results_of(out)["clean"] == clean
    for change in ("TRAIN.CLIP_GRADIENT", "0.1"), ("DATA.CLIPS", "3"):
        before = len(list(out.glob("finetune/*")))
        assert main([*command, *change]) == 0
        assert len(list(out.glob("finetune/*"))) == before + 1
