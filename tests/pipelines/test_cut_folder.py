"""From a folder of clips that were cut without re-encoding to a report, by the commands alone."""

import json

import pytest

from tests.data.cut_videos import SIZE, burnt, cut, sequential, write_coded
from tests.tiny_job import CONFIG, results_of
from vidcsl.cli import main
from vidcsl.config import load_config
from vidcsl.data.lists import read_list
from vidcsl.distributed import DistributedContext
from vidcsl.pipelines.data import build_test_loader, build_train_loader


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two classes of ten clips, as `ffmpeg -ss A -i SOURCE -t B -c copy` cuts them."""
    root = tmp_path_factory.mktemp("cut")
    for name, codec in (("walk", "h264"), ("jump", "hevc")):
        base = write_coded(root / f"{name}.mp4", codec, frames=100)
        (root / "videos" / name).mkdir(parents=True)
        for k in range(10):
            suffix = ".mov" if k % 3 == 2 else ".mp4"
            start = 3 + 4 * k  # between keyframes, which come every 25 frames
            cut(base, root / "videos" / name / f"clip{k}{suffix}", start=start, stop=start + 40)
    return root


def test_a_folder_of_cut_clips_goes_to_a_report_with_its_frames_right(folder, capsys):
    config, lists, out = folder / "c.yaml", folder / "lists", folder / "run"
    config.write_text(CONFIG)
    root = folder / "videos"
    assert main(["prepare", "folder", "--root", str(root), "--out", str(lists)]) == 0
    made = [str(lists / f"{part}.csv") for part in ("train", "test")]
    words = ["--root", str(root), "--lists", *made, "--out", str(folder / "sound")]
    assert main(["prepare", "scan", *words, "--workers", "1"]) == 0
    assert "20 videos, 20 sound, 0 set aside" in capsys.readouterr().out
    overrides = {
        "DATA.ROOT": root,
        "DATA.TRAIN_LIST": folder / "sound/train.csv",
        "DATA.TEST_LIST": folder / "sound/test.csv",
        "DATA.SHORT_SIDE": SIZE[0],
        "AUGMENT.CROP_BY": "device",
        "OUTPUT_DIR": out,
        "TRAIN.EPOCHS": 1,
        "ATTACK.RUNS": "[]",
        "CORRUPT.NAMES": "[]",
        "REPORT.ENABLED": "true",
    }
    pairs = [str(word) for pair in overrides.items() for word in pair]
    assert main(["train", "--cfg", str(config), *pairs]) == 0
    results = results_of(out)
    assert results["training"]["damaged_videos"] == []
    assert results["data"]["left_out"] == []
    assert results["training"]["notes"] == {}
    assert results["lists"]["videos_in_both"] == 0
    assert "knn_top1" in results["clean"]
    assert (out / "report.html").stat().st_size > 10_000
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert not any(line["kind"] == "damaged" for line in lines)

    # What the loaders of this run put into batches shows the numbers that they say it shows.
    cfg = load_config(config, pairs)
    alone = DistributedContext()
    train = read_list(overrides["DATA.TRAIN_LIST"], root=root)
    test = read_list(overrides["DATA.TEST_LIST"], root=root, classes=train.classes)
    assert len(train) + len(test) == 20
    expected = {video.path: sequential(video.path) for video in (*train.videos, *test.videos)}
    assert all(n == sorted(n) and len(n) > 35 and n[0] > 0 for n in expected.values())
    loaders = (
        (train, build_train_loader(cfg, train, alone, batch=8)),
        (test, build_test_loader(cfg, test, alone, clips=3, batch=2)),
    )
    seen = set()
    for videos, loader in loaders:
        for batch in loader.epoch(0):
            for row, index in enumerate(batch.indices.tolist()):
                path = videos.videos[index].path
                seen.add(path)
                for view, numbers in zip(batch.frames[row], batch.frame_indices[row], strict=True):
                    shown = burnt(view.permute(1, 2, 3, 0).numpy())
                    assert shown == [expected[path][k] for k in numbers.tolist()], path
    assert len(seen) >= 18  # the last, smaller batch of training is left out
