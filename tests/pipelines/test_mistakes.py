"""Mistakes of users and damaged videos: one clear line, and no work is lost."""

import shutil

from tests.tiny_job import arguments, fails, final, newest, results_of
from vidcsl.cli import main
from vidcsl.config import load_config
from vidcsl.data.lists import Row, read_rows, write_list


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
        (("ATTACK.RUNS", "[fab/flicker]"), "fab supports linf, l2 and l1"),
        (("ATTACK.RUNS", "[autoattack-dlr/linf]"), "autoattack has goals of its own"),
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

    copy = shutil.copytree(finished, tmp_path / "copy")
    (copy / "results.json").write_text("[]")
    assert "results.json is damaged" in fails(capsys, "evaluate", *arguments(data, config, copy))


def test_mistakes_of_attack_and_corruption_names_come_before_training(
    data, config, tmp_path, capsys
):
    out = tmp_path / "run"
    fails(capsys, "train", *arguments(data, config, out, "CORRUPT.NAMES", "[gaussian_nose]"))
    assert not (out / "log.jsonl").exists()


def test_goals_that_need_more_classes_are_reported_before_training(data, config, tmp_path, capsys):
    for part in ("train", "test"):
        rows = [row for row in read_rows(data / f"{part}.csv") if row.class_name in ("sway", "bob")]
        write_list(tmp_path / f"{part}.csv", rows)
    lists = ("DATA.TRAIN_LIST", tmp_path / "train.csv", "DATA.TEST_LIST", tmp_path / "test.csv")
    out = tmp_path / "run"
    words = arguments(data, config, out, *lists, "ATTACK.RUNS", "[pgd-dlr/linf]")
    assert "its goal needs 3 or more classes, not 2" in fails(capsys, "train", *words)
    assert not (out / "log.jsonl").exists()


def test_overrides_may_stand_anywhere(data, config, tmp_path, capsys):
    words = ["--cfg", str(config), "--debug", "SEED", "x"]
    assert "SEED must be int" in fails(capsys, "train", *words)
    words = ["SEED", "x", "--cfg", str(config)]
    assert "SEED must be int" in fails(capsys, "train", *words)


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
    results = results_of(out)
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
    results = results_of(out)
    assert results["clean"]["test_videos"] == len(rows)
    assert results["data"]["left_out"] == [str(broken)]


def test_what_training_did_without_its_evaluation_does_without_too(data, config, tmp_path, capsys):
    rows = read_rows(data / "train.csv")
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"nothing" * 50)
    listed = tmp_path / "train.csv"
    write_list(listed, [*rows, Row(str(broken), rows[0].class_name, "broken")])
    words = ("DATA.TRAIN_LIST", listed, "DATA.DAMAGED_LIMIT", 0.1, "TRAIN.EPOCHS", 1)
    words += ("ATTACK.RUNS", "[pgd/linf]", "CORRUPT.NAMES", "[]")
    out = tmp_path / "run"
    assert main(["train", *arguments(data, config, out, *words)]) == 0
    results = results_of(out)
    assert results["training"]["damaged_videos"] == [str(broken)]
    assert results["attacks"]
    assert "linear_top1" in results["clean"]
    # The same limit, by its name, where an evaluation is asked for with another value.
    again = arguments(data, config, out, *words, "DATA.DAMAGED_LIMIT", 0)
    for path in (out / "artifacts").glob("features_*"):
        path.unlink()
    message = fails(capsys, "evaluate", *again)
    assert "DATA.DAMAGED_LIMIT" in message
    assert str(broken) in message


def test_an_unreadable_test_video_is_said_before_training(data, config, tmp_path, capsys):
    rows = read_rows(data / "test.csv")
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"nothing" * 50)
    listed = tmp_path / "test.csv"
    write_list(listed, [*rows, Row(str(broken), rows[0].class_name, "broken")])
    out = tmp_path / "run"
    message = fails(capsys, "train", *arguments(data, config, out, "DATA.TEST_LIST", listed))
    assert str(broken) in message
    assert "DATA.ALLOW_DAMAGED_TEST true" in message
    assert not (out / "log.jsonl").exists()


def test_test_videos_without_labels_are_reported_before_training_and_evaluation(
    data, config, finished, tmp_path, capsys
):
    rows = [row._replace(class_name="") for row in read_rows(data / "test.csv")[:1]]
    mixed = tmp_path / "mixed.csv"
    write_list(mixed, [*rows, *read_rows(data / "test.csv")[1:]])
    out = tmp_path / "run"
    message = fails(capsys, "train", *arguments(data, config, out, "DATA.TEST_LIST", mixed))
    assert f"evaluation needs labels; 1 videos of {mixed} have none" in message
    assert not list(out.glob("checkpoints/*"))
    copy = shutil.copytree(finished, tmp_path / "copy")
    words = arguments(data, config, copy, "DATA.TEST_LIST", mixed)
    before = (copy / "results.json").read_text()
    for command in (["evaluate"], ["corrupt"], ["attack", "--out", str(tmp_path / "clips")]):
        assert "needs labels" in fails(capsys, command[0], *words, *command[1:])
    assert (copy / "results.json").read_text() == before


def test_other_data_sets_are_evaluated_without_test_videos(
    data, config, finished, tmp_path, capsys
):
    words = ["--checkpoint", str(newest(finished))]
    none = arguments(data, config, tmp_path / "none", "DATA.TEST_LIST", "")
    assert "DATA.TEST_LIST is not set" in fails(capsys, "evaluate", *none, *words)
    other = f"['again,{data},{data / 'train.csv'},{data / 'test.csv'}']"
    out = tmp_path / "run"
    given = arguments(data, config, out, "DATA.TEST_LIST", "", "EVALUATE.TRANSFER", other)
    assert main(["evaluate", *given, *words]) == 0
    found = results_of(out)["transfer"]["again"]
    assert found["knn_top1"] == results_of(finished)["clean"]["knn_top1"]


def test_more_epochs_go_on_from_the_weights(data, config, finished, tmp_path, capsys):
    """A cosine over more epochs is another schedule: `--resume` says how to go on."""
    run = shutil.copytree(finished, tmp_path / "run")
    words = ["train", *arguments(data, config, run, "TRAIN.EPOCHS", 3), "--resume"]
    said = fails(capsys, *words)
    assert "TRAIN.EPOCHS changed since it was started; train on from its weights" in said
    remedy = said.partition("with ")[2].replace("NEW_FOLDER", str(tmp_path / "more")).split()
    assert remedy[:2] == ["TRAIN.WEIGHTS", str(final(run))]
    assert str(tmp_path / "more") == load_config(config, remedy).OUTPUT_DIR
