import re
from collections import namedtuple
from pathlib import Path

import pytest
import torch

from tests.data.made_videos import write_numbered
from vidcsl import doctor
from vidcsl import doctor as storage
from vidcsl.cli import main
from vidcsl.config import load_config
from vidcsl.data.lists import write_list
from vidcsl.data.sampling import ViewSampler
from vidcsl.doctor import Finding
from vidcsl.pipelines.model import build_encoder


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    root = tmp_path_factory.mktemp("videos")
    for more, name in enumerate("abcd"):
        write_numbered(root / f"{name}.mp4", frames=6 + more)
    (root / "cut.mp4").write_bytes((root / "a.mp4").read_bytes()[:600])
    write_list(root / "train.csv", [("a.mp4", "x", "g1"), ("b.mp4", "y", "g2")])
    write_list(root / "test.csv", [("c.mp4", "x", "g3"), ("d.mp4", "y", "g4")])
    write_list(root / "leaking.csv", [("b.mp4", "y", "g2"), ("c.mp4", "x", "g1")])
    write_list(root / "damaged.csv", [("c.mp4", "x", "g5"), ("cut.mp4", "y", "g6")])
    write_list(root / "absent.csv", [("nosuch.mp4", "x", "g7")])
    return root


def examined(root, train, test, **options):
    """What is not in order, by name."""
    paths = {"train": str(root / train), "test": str(root / test)}
    found = list(doctor.examine_lists(root=str(root), **paths, **options))
    return {each.name: each for each in found if not each.there}


def test_sound_lists(videos):
    assert not examined(videos, "train.csv", "test.csv")


def test_what_is_on_both_sides(videos):
    found = examined(videos, "train.csv", "leaking.csv")
    assert set(found) == {"videos apart", "groups apart"}
    assert all(each.broken for each in found.values())
    assert "1 are in both lists: b.mp4" in found["videos apart"].words
    assert "g1 of x, g2 of y" in found["groups apart"].words


def test_a_source_may_lend_videos_to_another_class(videos):
    """As films do in the published splits of HMDB51."""
    write_list(videos / "lent.csv", [("c.mp4", "y", "g1"), ("d.mp4", "x", "g4")])
    assert not examined(videos, "train.csv", "lent.csv")


def test_classes_and_spellings_of_the_other_side(videos):
    write_list(videos / "other.csv", [("c.mp4", "z", "g3")])
    (found,) = examined(videos, "train.csv", "other.csv").values()
    assert "class 'z' is not one of the 2 classes" in found.words
    write_list(videos / "spelt.csv", [("./b.mp4", "y", "g5")])
    assert set(examined(videos, "train.csv", "spelt.csv")) == {"videos apart"}


def test_test_videos_without_a_label(videos):
    write_list(videos / "bare.csv", [("c.mp4", "x", "g3"), ("d.mp4", "", "g4")])
    (found,) = examined(videos, "train.csv", "bare.csv").values()
    assert (found.name, found.broken) == ("labels of the test list", True)
    assert "1 videos have no label" in found.words


def test_videos_that_cannot_be_read(videos):
    found = examined(videos, "damaged.csv", "test.csv")
    (one,) = (each for each in found.values() if "videos of" in each.name)
    assert one.broken
    assert "1 of 2 samples can be decoded; first: cannot read video" in one.words
    tolerant = examined(videos, "damaged.csv", "test.csv", tolerated=0.5)
    assert not tolerant["videos of the training list"].broken


def test_clips_that_are_longer_than_the_videos(videos):
    """The shortest have 6 and 8 frames."""
    long = ViewSampler((), stride=2)
    found = examined(videos, "train.csv", "test.csv", sampler=long, frames=5)
    assert set(found) == {"clips of the training list", "clips of the test list"}
    (one, _) = found.values()
    assert (one.broken, one.warns) == (False, True)
    assert "2 of 2 samples are shorter than a clip (a clip spans 9 frames" in one.words
    assert "DATA.SHORT_VIDEO loop" in one.words
    assert not examined(videos, "train.csv", "test.csv", sampler=long, frames=3)


def trained(*words, videos=226):
    """What is found of a training by default options and these."""
    cfg = load_config("ucf101_10_simclr", ["DEVICE", "cpu", *map(str, words)])
    return {each.name: each for each in doctor.examine_training(cfg, videos=videos)}


def test_a_batch_that_the_list_does_not_fill():
    found = trained("TRAIN.BATCH", 128, videos=27)["batch"]
    assert found.broken
    assert found.words == "27 videos do not fill one batch of 128: lower TRAIN.BATCH"


def test_memory_of_a_step_against_what_is_free(monkeypatch):
    monkeypatch.setattr(doctor, "_free_memory", lambda device: 2.0**30)
    monkeypatch.setattr(doctor, "_hours", lambda *_, **__: Finding("training", "time", True))
    small = trained("TRAIN.BATCH", 8, "PRECISION", "float32")["memory"]
    assert small.there
    large = trained("TRAIN.BATCH", 64, "PRECISION", "float32")["memory"]
    assert (large.there, large.broken) == (False, True)
    (chunk,) = re.findall(r"set TRAIN.CHUNK (\d+), or lower TRAIN.BATCH, MODEL.WIDTH", large.words)
    chunked = ("TRAIN.BATCH", 64, "TRAIN.CHUNK", chunk, "PRECISION", "float32")
    assert trained(*chunked)["memory"].there
    half = ("TRAIN.BATCH", 40, "PRECISION")
    assert not trained(*half, "float32")["memory"].there
    assert trained(*half, "bfloat16")["memory"].there


def test_saved_bytes_are_those_of_a_forward_pass():
    """They grow as the channels do, and the weights as their square."""
    slim = load_config("ucf101_10_simclr", ["MODEL.WIDTH", "8"])
    wide = load_config("ucf101_10_simclr", ["MODEL.WIDTH", "16"])
    (few, little), (many, much) = doctor.saved_bytes(slim), doctor.saved_bytes(wide)
    assert 1.5 * few < many < 2.5 * few
    assert 3 * little < much < 5 * little
    weights = sum(each.nbytes for each in build_encoder(wide).parameters())
    assert much == weights


def test_workers_against_cores_and_hours_from_a_step():
    found = trained("DATA.WORKERS", 999, "TRAIN.BATCH", 32, "MODEL.WIDTH", 4, "MODEL.DEPTH", 1)
    assert (found["workers"].there, found["workers"].warns) == (False, True)
    assert "lower DATA.WORKERS" in found["workers"].words
    assert re.match(r"about [\d.]+ (h|min) for 20 epochs", found["time"].words)


@pytest.mark.parametrize(
    ("options", "pixels"),  # of 32 frames in training, of 80 clips of whole frames in evaluation
    [
        ("AUGMENT: {CROP_BY: decoder}", 16 * 2 * 48 * 48),
        ("AUGMENT: {CROP_BY: device}", 16 * 2 * (128 * 128 * 16 // 9)),
        ("EVALUATE: {BATCH: 8, TRAIN_VIEWS: 1, TEST_VIEWS: 10}", 8 * 10 * (128 * 128 * 16 // 9)),
    ],
)
def test_shared_memory_that_the_loaders_need(
    videos, tmp_path, capsys, monkeypatch, options, pixels
):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    config = tmp_path / "config.yaml"
    config.write_text(
        f"OUTPUT_DIR: {tmp_path}/run\n{options}\nTRAIN: {{BATCH: 16}}\nMODEL: {{FRAME_SIZE: 48}}\n"
        f"DATA: {{ROOT: {videos}, TRAIN_LIST: {videos}/train.csv, WORKERS: 2, SHORT_SIDE: 128}}\n"
    )
    tested = ["DATA.TEST_LIST", f"{videos}/test.csv"] if "EVALUATE" in options else []
    alone = ["DATA.FRAMES", "16", "TRAIN.ENABLED", "false"]
    assert main(["doctor", "--cfg", str(config), *alone, *tested]) == 0
    needed = 2 * 2 * 3 * 16 * pixels / 2**30  # two batches of each of two workers
    assert f"hold up to {needed:.2f} GiB" in capsys.readouterr().out


def test_the_command_fails_where_something_is_broken(videos, tmp_path, capsys):
    config = tmp_path / "config.yaml"
    lists = "{{ROOT: {0}, TRAIN_LIST: {0}/{1}.csv, TEST_LIST: {0}/test.csv, WORKERS: 0}}"
    small = "TRAIN: {BATCH: 2}\nMODEL: {WIDTH: 4, DEPTH: 1, FRAME_SIZE: 16}\n"
    config.write_text(f"OUTPUT_DIR: {tmp_path}/run\n{small}DATA: {lists.format(videos, 'train')}")
    assert main(["doctor", "--cfg", str(config)]) == 0
    assert "  ok      groups apart" in capsys.readouterr().out
    config.write_text(f"{small}DATA: {lists.format(videos, 'absent')}")
    assert main(["doctor", "--cfg", str(config)]) == 2
    seen = capsys.readouterr()
    assert "  broken  training  1 of 1 videos are missing" in seen.out
    assert seen.err.endswith("error: broken: training, batch\n")


def test_too_little_room(monkeypatch):
    usage = namedtuple("usage", ["free"])
    monkeypatch.setattr(storage.shutil, "disk_usage", lambda path: usage(2**26))
    disk, shared = doctor.examine_storage(Path("no/such/folder"), batches=2**27)
    assert disk.broken
    assert shared.broken
    assert "--shm-size" in shared.words
    _, shared = doctor.examine_storage(Path("."))
    assert not shared.there
    assert not shared.broken  # of what is asked nothing is known
