"""Lists, checkpoints and configs that do not go together are found before anything is computed."""

import shutil

import pytest
import torch

from tests.tiny_job import arguments, fails, final, newest, results_of
from vidcsl.cli import main
from vidcsl.config import load_config
from vidcsl.data.lists import read_list, read_rows, write_list
from vidcsl.pipelines.list_checks import short_videos
from vidcsl.report.summary import read_results, warnings

QUIET = ("ATTACK.RUNS", "[]", "CORRUPT.NAMES", "[]", "FALSE_NEGATIVES.DETECTOR", "none")
SUPERVISED = (*QUIET, "METHOD.NAME", "supervised", "TRAIN.EPOCHS", 1)
MEMORY = ("ATTACK.RUNS", "[]", "CORRUPT.NAMES", "[]", "DATA.TEST_LIST", "", "TRAIN.EPOCHS", 1)
MEMORY += ("FALSE_NEGATIVES.DETECTOR", "memory", "FALSE_NEGATIVES.CEILING", 0.3)


@pytest.fixture(scope="module")
def supervised(data, config, tmp_path_factory):
    out = tmp_path_factory.mktemp("supervised") / "run"
    assert main(["train", *arguments(data, config, out, *SUPERVISED)]) == 0
    return out


@pytest.fixture(scope="module")
def remembering(data, config, tmp_path_factory):
    out = tmp_path_factory.mktemp("memory") / "run"
    assert main(["train", *arguments(data, config, out, *MEMORY)]) == 0
    return out


def rewritten(source, target, change):
    """A list whose rows `change` made of another's."""
    write_list(target, change(read_rows(source)))
    return target


# Classes ------------------------------------------------------------------------------------------


def test_a_head_follows_the_names_of_its_classes(data, config, supervised, tmp_path):
    """The same weights under another order of the classes are the same classifier."""
    checkpoint = torch.load(newest(supervised), weights_only=True)
    method, order = checkpoint["method"], [2, 0, 3, 1]
    checkpoint["classes"] = [checkpoint["classes"][k] for k in order]
    for key in ("head.weight", "head.bias"):
        method[key] = method[key][order]
    torch.save(checkpoint, tmp_path / "turned.pt")
    out = tmp_path / "run"
    words = arguments(data, config, out, *SUPERVISED)
    assert main(["evaluate", *words, "--checkpoint", str(tmp_path / "turned.pt")]) == 0
    results, before = results_of(out), results_of(supervised)
    assert results["data"]["classes"] == checkpoint["classes"]
    for key in ("own_head_top1", "own_head_clip_top1", "knn_top1"):
        assert results["clean"][key] == before["clean"][key]
    # Further training starts from it, whatever the order of its own list.
    onward = (*SUPERVISED, "TRAIN.WEIGHTS", tmp_path / "turned.pt", "DATA.TEST_LIST", "")
    onward += ("TRAIN.LR", 1e-12, "TRAIN.WARMUP_EPOCHS", 0, "TRAIN.WEIGHT_DECAY", 0)
    assert main(["train", *arguments(data, config, tmp_path / "on", *onward)]) == 0
    after = torch.load(newest(tmp_path / "on"), weights_only=True)
    rows = {name: after["method"]["head.weight"][k] for k, name in enumerate(after["classes"])}
    for k, name in enumerate(checkpoint["classes"]):
        torch.testing.assert_close(rows[name], method["head.weight"][k], atol=1e-6, rtol=0)


def test_a_head_of_other_classes_is_refused(data, config, supervised, tmp_path, capsys):
    lists = {}
    for part in ("train", "test"):
        lists[part] = rewritten(
            data / f"{part}.csv",
            tmp_path / f"{part}.csv",
            lambda rows: [
                row._replace(class_name=row.class_name.replace("bob", "nod")) for row in rows
            ],
        )
    others = ("DATA.TRAIN_LIST", lists["train"], "DATA.TEST_LIST", lists["test"])
    out = tmp_path / "run"
    words = arguments(data, config, out, *SUPERVISED, *others)
    said = fails(capsys, "evaluate", *words, "--checkpoint", str(newest(supervised)))
    assert "bob" in said
    assert "nod" in said
    said = fails(capsys, "train", *words, "TRAIN.WEIGHTS", str(newest(supervised)))
    assert "--weights vidcsl:" in said
    assert not (out / "results.json").exists()
    # The encoder knows no classes.
    words = arguments(data, config, out, *QUIET, *others)
    assert main(["evaluate", *words, "--checkpoint", str(newest(supervised))]) == 0


# The content of the training list -----------------------------------------------------------------


def test_a_run_is_not_resumed_with_another_list_under_the_same_name(
    data, config, supervised, tmp_path, capsys
):
    out = shutil.copytree(supervised, tmp_path / "run")
    words = [*arguments(data, config, out, *SUPERVISED), "--resume"]
    before = {path: path.read_bytes() for path in out.iterdir() if path.is_file()}
    kept = (data / "train.csv").read_bytes()
    rows = read_rows(data / "train.csv")
    changes = {
        "shorter": rows[:-1],
        "reordered": [rows[1], rows[0], *rows[2:]],
        "another class": [rows[0]._replace(class_name=rows[-1].class_name), *rows[1:]],
        "another group": [rows[0]._replace(group="another"), *rows[1:]],
    }
    try:
        for name, changed in changes.items():
            write_list(data / "train.csv", changed)
            said = fails(capsys, "train", *words)
            assert "the content of" in said, name
            assert "train.csv changed since" in said
            assert "OUTPUT_DIR" in said
            assert {path: path.read_bytes() for path in before} == before  # nothing is lost
        # Other line ends, quotes and blanks are the same list.
        text = kept.decode().replace("\n", "\r\n").replace("\r\nvideos/", '\r\n"./videos/')
        text = text.replace(".mp4,", '.mp4", ')
        assert text.count('"') == 2 * len(rows)
        (data / "train.csv").write_bytes(text.encode())
        assert main(["train", *words]) == 0
    finally:
        (data / "train.csv").write_bytes(kept)


def test_a_memory_belongs_to_its_list(data, config, remembering, tmp_path, capsys):
    train = tmp_path / "train.csv"
    reordered = rewritten(data / "train.csv", train, lambda rows: rows[::-1])
    words = arguments(data, config, tmp_path / "run", *MEMORY, "DATA.TRAIN_LIST", reordered)
    for key in ("TRAIN.WEIGHTS", "FALSE_NEGATIVES.TUTOR"):  # a memory to go on from, and a tutor's
        said = fails(capsys, "train", *words, key, str(newest(remembering)))
        assert key in said
        assert "another list" in said
    teacher = ("FALSE_NEGATIVES.DETECTOR", "teacher", "FALSE_NEGATIVES.TEACHER")
    words = [each for each in words if each not in MEMORY[-4:]]
    words = arguments(data, config, tmp_path / "run", *MEMORY[:8], *teacher, newest(remembering))
    words += ["DATA.TRAIN_LIST", str(reordered)]
    assert "another list" in fails(capsys, "train", *words)
    # The same list elsewhere is the same list.
    moved = tmp_path / "moved" / "train.csv"
    moved.parent.mkdir()
    shutil.copy(data / "train.csv", moved)
    words = (*MEMORY, "DATA.TRAIN_LIST", moved, "FALSE_NEGATIVES.TUTOR", newest(remembering))
    assert main(["train", *arguments(data, config, tmp_path / "moved/run", *words)]) == 0


def test_checkpoints_and_results_name_the_content_of_the_lists(data, config, finished, tmp_path):
    recorded = results_of(finished)["lists"]
    assert recorded["train"] != recorded["test"]
    assert torch.load(final(finished), weights_only=True)["train_list"] == recorded["train"]


# Videos and groups on both sides ------------------------------------------------------------------


def test_what_training_and_test_share_is_said_at_the_start_and_in_the_report(
    data, config, tmp_path, capsys
):
    trained = read_rows(data / "train.csv")
    test = rewritten(data / "test.csv", tmp_path / "test.csv", lambda rows: [*rows, *trained[:3]])
    out = tmp_path / "run"
    words = ("DATA.TEST_LIST", test, "TRAIN.EPOCHS", 1, "REPORT.ENABLED", "true", *QUIET)
    assert main(["train", *arguments(data, config, out, *words)]) == 0
    said = capsys.readouterr().err
    lists = results_of(out)["lists"]
    assert lists["groups_in_both"] == len({(row.class_name, row.group) for row in trained[:3]})
    # The copies that `show_again` made have names and groups of their own, and the same content.
    assert lists["videos_in_both"] == len(read_rows(test))
    first = f"{lists['videos_in_both']} of {len(read_rows(test))} test videos"
    assert first in said
    assert said.index(first) < said.index("pretraining")
    found = warnings(read_results(out / "results.json"), damaged=())
    assert any(sentence.startswith(first) for sentence in found)
    assert first in (out / "report.html").read_text()


# What a list cannot carry -------------------------------------------------------------------------


def test_what_a_list_cannot_carry_is_found_before_the_first_step(data, config, tmp_path, capsys):
    rows = read_rows(data / "train.csv")
    one = rows[0].class_name
    lists = {
        "partly": [rows[0]._replace(class_name=""), *rows[1:]],
        "one": [row for row in rows if row.class_name == one],
        "grouped": [row._replace(group="g") for row in rows],
    }
    for name, changed in lists.items():
        write_list(tmp_path / f"{name}.csv", changed)
    tests = [row for row in read_rows(data / "test.csv") if row.class_name == one]
    write_list(tmp_path / "tests.csv", tests)
    partly = ("DATA.TRAIN_LIST", tmp_path / "partly.csv")
    single = ("DATA.TRAIN_LIST", tmp_path / "one.csv", "DATA.TEST_LIST", tmp_path / "tests.csv")
    grouped = ("DATA.TRAIN_LIST", tmp_path / "grouped.csv", "DATA.TEST_LIST", "")
    tuned = ("EVALUATE.LINEAR", "false", "FINETUNE.ENABLED", "true", "FINETUNE.BATCH", 4)
    cases = [
        ((*partly, "FINETUNE.ENABLED", "true"), "FINETUNE.ENABLED needs labels; 1 videos"),
        ((*partly, "ROBUST.PROTOCOLS", "[alf]"), "ROBUST.PROTOCOLS needs labels; 1 videos"),
        (("FINETUNE.ENABLED", "true", "FINETUNE.BATCH", 25), "FINETUNE.BATCH 25"),
        (("ROBUST.PROTOCOLS", "[aff]", "ROBUST.BATCH", 25), "ROBUST.BATCH 25"),
        (("TRAIN.BATCH", 25), "TRAIN.BATCH 25"),
        ((*single, "TRAIN.BATCH", 4), "at least two classes"),
        ((*single, "TRAIN.BATCH", 4, *tuned), "FINETUNE.ENABLED needs videos of at least two"),
        (
            (*single[:2], *SUPERVISED[-6:], "DATA.TEST_LIST", "", "TRAIN.BATCH", 4),
            "METHOD.NAME supervised needs videos of at least two classes",
        ),
        ((*grouped, "FALSE_NEGATIVES.DETECTOR", "known_groups"), "at least two groups"),
        ((*single, "FALSE_NEGATIVES.DETECTOR", "labels", "TRAIN.BATCH", 4), "at least two classes"),
    ]
    for number, (overrides, expected) in enumerate(cases):
        out = tmp_path / str(number)
        words = arguments(data, config, out, *QUIET[:4], *overrides)
        assert expected in fails(capsys, "train", *words), overrides
        assert not (out / "log.jsonl").exists()
    # Splits are lists, too.
    splits = f"['{tmp_path / 'partly.csv'},{data / 'test.csv'}']"
    words = ("FINETUNE.ENABLED", "true", "FINETUNE.BATCH", 8, "EVALUATE.SPLITS", splits)
    said = fails(capsys, "train", *arguments(data, config, tmp_path / "split", *QUIET, *words))
    assert "partly.csv" in said
    # Without labels that nothing asks for, all is well.
    words = (*partly, *QUIET, "TRAIN.EPOCHS", 1, "EVALUATE.LINEAR", "false")
    assert main(["train", *arguments(data, config, tmp_path / "fine", *words)]) == 0


def test_a_run_that_learns_nothing_ends_after_an_epoch(data, config, tmp_path, capsys):
    """Every pair is flagged, and without negatives there is no gradient."""
    words = (*QUIET[:4], "FALSE_NEGATIVES.DETECTOR", "fnc", "FALSE_NEGATIVES.NEAREST", 1000)
    words += ("FALSE_NEGATIVES.THRESHOLD", -1, "FALSE_NEGATIVES.START", 0, "TRAIN.EPOCHS", 3)
    out = tmp_path / "run"
    said = fails(capsys, "train", *arguments(data, config, out, *words))
    assert "nothing was learned in epoch 1" in said
    assert "no anchor has a negative" in said
    assert "FALSE_NEGATIVES" in said
    steps = [line for line in (out / "log.jsonl").read_text().splitlines() if '"train"' in line]
    assert len(steps) == 3
    assert not list((out / "checkpoints").glob("epoch*"))


# Lengths ------------------------------------------------------------------------------------------


def test_videos_shorter_than_a_clip_are_counted(data, config):
    train = read_list(data / "train.csv", root=data)
    cfg = load_config(config, ["DATA.FRAMES", "4", "DATA.STRIDE", "1"])
    assert short_videos(cfg, train) == (0, len(train))
    cfg = load_config(config, ["DATA.FRAMES", "4", "DATA.STRIDE", "1000"])
    assert short_videos(cfg, train) == (len(train), len(train))
