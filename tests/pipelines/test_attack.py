"""Attacks on a run, through the command line: of videos, on neighbours, kept for other models."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.tiny_job import arguments, fails, results_of
from vidcsl.cli import main
from vidcsl.robustness.attacked_clips import read_clip, read_set
from vidcsl.robustness.threats import Linf


@pytest.fixture(scope="module")
def another(data, config, tmp_path_factory):
    """A model of another frame size, with a head of its own."""
    out = tmp_path_factory.mktemp("another") / "run"
    words = ("METHOD.NAME", "supervised", "FALSE_NEGATIVES.DETECTOR", "none", "NAME", "other")
    words += ("TRAIN.EPOCHS", 1, "CORRUPT.NAMES", "[]")
    words += ("ATTACK.RUNS", "[]", "MODEL.FRAME_SIZE", 20, "SEED", 3)
    assert main(["train", *arguments(data, config, out, *words)]) == 0
    return out


def test_attacks_on_videos_and_on_neighbours(data, config, finished, tmp_path):
    out = shutil.copytree(finished, tmp_path / "run")
    words = ("ATTACK.TARGETS", "[classifier, knn, retrieval]", "ATTACK.INPUT", "video")
    words += ("ATTACK.RUNS", "[pgd/linf]", "CORRUPT.NAMES", "[]", "EVALUATE.CROPS", 3)
    words += ("EVALUATE.KNN_K", 1)  # the nearest video is the one that is shown again
    assert main(["evaluate", *arguments(data, config, out, *words)]) == 0
    # By other views than those of the training's own evaluation, whose record stays.
    (evaluated,) = out.glob("evaluations/*")
    results = results_of(evaluated)
    expected = {
        "pgd_linf_video": results["clean"]["linear_top1"],
        "pgd_linf_video_knn": results["clean"]["knn_top1"],
        "pgd_linf_video_retrieval": results["clean"]["retrieval"]["R@1"],
    }
    # Evaluation rounds resized frames to 8 bits, the attacked function may not: a clip apart.
    clean = {name: results["attack_settings"][name]["clean"] for name in expected}
    assert clean == pytest.approx(expected, abs=1 / results["clean"]["test_videos"])
    for name in expected:
        found = results["attack_classes"][name]
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
    results = results_of(out)
    assert "pgd_linf_frames_random_crop" in results["attacks"]
    assert results["attack_settings"]["pgd_linf_frames_random_crop"]["clips"] == 4


def test_results_of_an_earlier_version_of_a_threat_are_not_taken(
    data, config, finished, tmp_path, monkeypatch
):
    out = shutil.copytree(finished, tmp_path / "run")
    words = ("ATTACK.RUNS", "[random_noise/linf]", "ATTACK.MAX_CLIPS", 2, "CORRUPT.NAMES", "[]")
    words = ["evaluate", *arguments(data, config, out, *words)]

    def caches():
        assert main(words) == 0
        return {path: path.read_bytes() for path in (out / "answers").glob("*.jsonl")}

    before = caches()
    assert caches() == before  # found again
    monkeypatch.setattr(Linf, "VERSION", 2)
    assert len(caches()) == len(before) + 1


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


def test_a_universal_delta_is_that_of_training_clips_in_every_block(
    data, config, finished, tmp_path
):
    out = shutil.copytree(finished, tmp_path / "run")
    words = ("ATTACK.RUNS", "['pgd/linf:universal=yes,eps=8']", "ATTACK.QUANTISE", "true")
    words = ["attack", *arguments(data, config, out, *words, "EVALUATE.BATCH", 3)]

    def deltas(name, *options):
        clips = tmp_path / name
        assert main([*words, *options, "--out", str(clips)]) == 0
        (attacked,) = clips.glob("pgd*/8_255")
        described = read_set(attacked)
        files = [each["file"] for each in described["clips"]]
        pairs = [(read_clip(clips / "clean" / file), read_clip(attacked / file)) for file in files]
        # Unknown near black and white, where it may have been cut.
        inside = [(clean - 0.5).abs() < 0.5 - 8.5 / 255 for clean, _ in pairs]
        return [
            torch.where(known, 255 * (clip - clean), torch.nan)
            for known, (clean, clip) in zip(inside, pairs, strict=True)
        ]

    def apart(mine, theirs):
        differs = (mine - theirs).abs()
        assert differs.isfinite().float().mean() > 0.5
        return bool((differs > 0.5).any())

    found = deltas("clips")
    assert len(found) == 8
    assert not any(apart(found[0], each) for each in found[1:])
    assert apart(found[0], deltas("fewer", "ATTACK.UNIVERSAL_CLIPS", "2")[0])


def test_an_example_cut_short_by_a_kill_is_made_anew(data, config, finished, tmp_path):
    out = shutil.copytree(finished, tmp_path / "run")
    kept = sorted((out / "artifacts").glob("attack_pgd_linf.*.npz"))
    whole = dict(np.load(kept[0]))
    kept[0].write_bytes(kept[0].read_bytes()[:200])
    assert main(["evaluate", *arguments(data, config, out, "CORRUPT.NAMES", "[]")]) == 0
    again = dict(np.load(kept[0]))
    assert again.keys() == whole.keys()
    assert all(np.array_equal(again[name], whole[name]) for name in whole)


def test_mistakes_with_attacked_clips_are_one_line(data, config, finished, tmp_path, capsys):
    run = ["--runs", str(finished)]
    assert "vidcsl attack" in fails(capsys, "transfer", str(tmp_path), *run)
    words = arguments(data, config, tmp_path / "none")
    assert "train first" in fails(capsys, "attack", *words, "--out", str(tmp_path / "clips"))


def test_what_does_not_fit_a_transfer_is_one_line(
    data, config, finished, another, tmp_path, capsys
):
    words = arguments(data, config, finished, "ATTACK.RUNS", "[fgsm/linf]", "ATTACK.MAX_CLIPS", 2)
    clips = str(tmp_path / "clips")
    assert main(["attack", *words, "--out", clips]) == 0
    runs = ["--runs", str(finished)]
    twin = str(shutil.copytree(finished, tmp_path / "twin"))
    assert "set NAME in" in fails(capsys, "transfer", clips, *runs, twin)
    smaller = fails(capsys, "transfer", clips, "--runs", str(another))
    assert "ATTACK.INPUT frames" in smaller
    (tmp_path / "folder").mkdir()
    unwritable = ["--json", str(tmp_path / "folder")]
    assert "is a folder" in fails(capsys, "transfer", clips, *runs, *unwritable)
    nothing = [*words, "ATTACK.TARGETS", "[]", "--out", clips]
    assert "nothing to write" in fails(capsys, "attack", *nothing)
