"""`vidcsl corrupt` on a tiny rendered set, through the command line."""

import csv
import json
import shutil

import pytest

from tests.tiny_job import arguments, fails, results_of
from vidcsl.cli import main
from vidcsl.data.lists import write_list
from vidcsl.data.readers import open_reader
from vidcsl.robustness import corruption_table


@pytest.fixture(scope="module")
def finished(finished, tmp_path_factory):
    """A copy of the finished run, because `vidcsl corrupt` writes into it."""
    return shutil.copytree(finished, tmp_path_factory.mktemp("corrupted") / "run")


def test_predictions_are_cached_and_scores_have_intervals(
    finished, data, config, capsys, monkeypatch
):
    before = results_of(finished)
    computed = []
    predict = corruption_table.predict
    monkeypatch.setattr(
        corruption_table,
        "predict",
        lambda model, batch, name, severity: (
            computed.append((name, severity)) or predict(model, batch, name, severity)
        ),
    )
    names = '["gaussian_noise","C/contrast","V/banding"]'
    assert main(["corrupt", *arguments(data, config, finished), "CORRUPT.NAMES", names]) == 0
    assert {name for name, _ in computed} == {"V/banding"}  # the run has cached the others
    printed = capsys.readouterr().out
    assert "| V: photometric |" in printed.splitlines()[0]
    after = results_of(finished)["corruptions"]
    assert after["P"] == before["corruptions"]["P"]
    assert after["C"] == before["corruptions"]["C"]
    assert after["order"] == "video"
    suite = after["scores"]["suites"]["P"]
    low, high = suite["all"]["interval"]["accuracy"]
    assert 0 <= low <= suite["all"]["accuracy"] <= high <= 1
    assert set(suite) == {"all", "noise"}
    assert after["scores"]["suites"]["V"]["photometric"]["gamma_r"] is not None


def test_several_checkpoints_make_one_table(finished, data, config, capsys, tmp_path):
    checkpoints = sorted((finished / "checkpoints").glob("*.pt"))
    assert len(checkpoints) == 2
    words = [word for path in checkpoints for word in ("--checkpoint", str(path))]
    (tmp_path / "results.json").write_text('{"corruptions": "of the run itself"}')
    assert main(["corrupt", *arguments(data, config, tmp_path), *words]) == 0
    assert results_of(tmp_path)["corruptions"] == "of the run itself"
    rows = capsys.readouterr().out.strip().splitlines()[2:]
    assert [row.split(" | ")[0].removeprefix("| ") for row in rows] == list(map(str, checkpoints))
    stored = json.loads((tmp_path / "corruptions.json").read_text())
    assert list(stored) == list(map(str, checkpoints))


def test_export_writes_whole_videos_and_lists_and_goes_on(data, config, capsys, tmp_path):
    out = tmp_path / "corrupted"
    words = ["CORRUPT.NAMES", '["P/static_rotation"]', "CORRUPT.MAX_CLIPS", "2"]
    command = ["corrupt", *arguments(data, config, tmp_path / "run", *words), "--export", str(out)]
    assert main(command) == 0
    assert "6 lists" in capsys.readouterr().out
    with (out / "P" / "static_rotation" / "5.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2
    stamps = {}
    for row in rows:
        clean, turned = out / "clean" / row["video"], out / "P/static_rotation/5" / row["video"]
        with open_reader(clean) as first, open_reader(turned) as second:
            assert first.num_frames == second.num_frames == 16
            before, after = first.read([3])[0].astype(int), second.read([3])[0].astype(int)
        assert abs(before - after).mean() > 2
        quarter = before.swapaxes(0, 1)[::-1]  # severity 5 turns by 90 degrees
        assert abs(quarter - after).mean() < 4
        stamps[turned] = turned.stat().st_mtime_ns
    gone = next(iter(stamps))
    gone.unlink()
    assert main(command) == 0
    assert gone.exists()
    kept = [path for path in stamps if path != gone]
    assert all(path.stat().st_mtime_ns == stamps[path] for path in kept)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["CORRUPT.NAMES", '["gausian_noise"]'], "did you mean 'gaussian_noise'"),
        (["CORRUPT.NAMES", "[]"], "CORRUPT.NAMES is empty"),
        (["DATA.TEST_LIST", ""], "DATA.TEST_LIST"),
        (["EVALUATE.LINEAR", "false"], "set EVALUATE.LINEAR to true"),
        (["--export", "here", "--checkpoint", "epoch.pt"], "--export writes videos"),
    ],
)
def test_mistakes_are_reported_in_one_line(finished, data, config, capsys, words, message):
    assert message in fails(capsys, "corrupt", *arguments(data, config, finished, *words))


def test_a_run_without_a_checkpoint_is_refused(data, config, capsys, tmp_path):
    assert "no checkpoint" in fails(capsys, "corrupt", *arguments(data, config, tmp_path))


def test_two_videos_of_one_name_are_not_exported_to_one_file(data, config, capsys, tmp_path):
    root = tmp_path / "videos"
    root.mkdir()
    video = next(data.rglob("*.mp4"))
    for name in ("x.mp4", "x.mov"):
        (root / name).write_bytes(video.read_bytes())
    write_list(root / "test.csv", [("x.mp4", "sway", ""), ("x.mov", "bob", "")])
    write_list(root / "train.csv", [("x.mp4", "sway", ""), ("x.mov", "bob", "")])
    places = ("DATA.ROOT", root, "DATA.TRAIN_LIST", root / "train.csv")
    places += ("DATA.TEST_LIST", root / "test.csv")
    words = arguments(data, config, tmp_path / "run", *places)
    message = fails(capsys, "corrupt", *words, "--export", str(tmp_path / "out"))
    assert "would be exported to one file: x.mp4" in message


def test_corruptions_over_time_act_on_the_video_or_on_the_clip(finished, data, config, tmp_path):
    checkpoint = str(max((finished / "checkpoints").glob("*.pt")))
    for order in ("video", "clip"):
        words = ["CORRUPT.NAMES", '["freezing","C/packet_loss"]', "CORRUPT.ORDER", order]
        words += ["CORRUPT.MAX_CLIPS", "2", "--checkpoint", checkpoint]
        assert main(["corrupt", *arguments(data, config, tmp_path / order, *words)]) == 0
        found = results_of(tmp_path / order)["corruptions"]
        assert found["order"] == order
        assert len(found["P"]["freezing"]) == 5
        assert all(0 <= ratio <= 1 for ratio in found["damaged_clips"]["C/packet_loss"])
