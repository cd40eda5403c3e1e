import numpy as np
import pytest
import torch
from PIL import Image

from tests.report.mp4 import assert_videos_alike, videos_of
from vidcsl.cli import main
from vidcsl.config import load_config
from vidcsl.data.lists import read_list
from vidcsl.data.readers import open_reader
from vidcsl.data.synthetic import generate
from vidcsl.distributed import DistributedContext
from vidcsl.pipelines import preview as stage
from vidcsl.pipelines.data import build_augmentation, build_train_loader
from vidcsl.seeding import seed_of

CONFIG = """
DEVICE: cpu
NAME: shown
SEED: 3
DATA: {FRAMES: 4, STRIDE: 2, SHORT_SIDE: 32, WORKERS: 1}
MODEL: {FRAME_SIZE: 24}
TRAIN: {BATCH: 6}
EVALUATE: {TEST_VIEWS: 3}
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("synthetic")
    generate(root, classes=("sway", "bob"), sources_per_class=4, frames=16, size=32)
    return root


@pytest.fixture
def arguments(data, tmp_path):
    (tmp_path / "c.yaml").write_text(CONFIG)
    where = {"DATA.ROOT": data, "DATA.TRAIN_LIST": data / "train.csv"}
    where["DATA.TEST_LIST"] = data / "test.csv"
    pairs = [str(word) for pair in where.items() for word in pair]
    return ["--cfg", str(tmp_path / "c.yaml"), *pairs]


@pytest.fixture
def captured(monkeypatch):
    """The samples that would be drawn."""
    shown = []
    monkeypatch.setattr(
        stage, "write_contact_sheet", lambda samples, *_, **__: shown.append(samples) or []
    )
    return shown


def alone():
    return DistributedContext(rank=0, size=1, device=torch.device("cpu"))


def test_the_sheet_shows_what_training_gets(arguments, captured, data):
    assert main(["show", "clips", *arguments, "--samples", "2", "--epoch", "5"]) == 0
    (samples,) = captured
    cfg, distributed = load_config(arguments[1], arguments[2:]), alone()
    videos = read_list(data / "train.csv", root=data)
    batch = next(build_train_loader(cfg, videos, distributed).epoch(5))
    seeds = torch.tensor([seed_of(3, 5, index) for index in batch.indices.tolist()])
    fed = build_augmentation(cfg)(batch.frames, batch.sizes, seeds)
    assert len(samples) == 2
    for row, sample in enumerate(samples):
        video = videos.videos[batch.indices[row]]
        assert (sample.video, sample.frames, sample.fps) == (video.path.name, 16, 25)
        assert sample.class_name == videos.classes[video.label]
        with open_reader(video.path, short_side=32) as reader:
            frames = reader.read(range(16))
        assert len(sample.views) == 2
        for k, view in enumerate(sample.views):
            assert view.numbers == tuple(batch.frame_indices[row, k].tolist())
            assert np.array_equal(view.decoded, frames[list(view.numbers)])
            expected = fed[row, k].permute(1, 2, 3, 0).numpy() * 255
            assert np.abs(view.fed - expected).max() <= 0.5 + 1e-3


def test_one_video_is_enough(arguments, captured):
    for part in ("train", "test"):
        assert main(["show", "clips", *arguments, "--part", part, "--samples", "1"]) == 0
    assert [len(samples) for samples in captured] == [1, 1]


def test_test_views_are_shown_in_order(arguments, captured):
    assert main(["show", "clips", *arguments, "--part", "test", "--samples", "99"]) == 0
    (samples,) = captured
    assert len(samples) == 6  # all that there are
    assert [view.numbers[0] for view in samples[0].views] == [0, 4, 9]
    assert all(view.fed.shape == (4, 24, 24, 3) for view in samples[0].views)


def test_a_picture_and_a_page_are_written(arguments, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["show", "clips", *arguments, "--samples", "2", "--out", str(out)]) == 0
    assert capsys.readouterr().out.split() == [str(out / "clips.png"), str(out / "clips.html")]
    with Image.open(out / "clips.png") as picture:
        assert picture.format == "PNG"
        # Four frames, enlarged fourfold, one beside the other.
        assert picture.width >= 4 * 4 * 32
        assert np.asarray(picture).std() > 10
    page = (out / "clips.html").read_text()
    assert page.count("<video ") == 2 * 2 * 2
    assert "shown, seed 3: train videos, epoch 0" in page


def test_the_same_clips_are_shown_again(arguments, tmp_path):
    shown = []
    for name in ("first", "second"):
        out = tmp_path / name
        assert main(["show", "clips", *arguments, "--samples", "2", "--out", str(out)]) == 0
        with Image.open(out / "clips.png") as picture:
            pixels = np.asarray(picture)
        text, clips = videos_of((out / "clips.html").read_text())
        shown.append((pixels, text, clips))
    (pixels, text, clips), (pixels_again, text_again, clips_again) = shown
    assert np.array_equal(pixels, pixels_again)
    assert text == text_again
    assert_videos_alike(clips, clips_again)


def test_user_errors_are_one_line(arguments, data, capsys):
    def error(*words):
        assert main(["show", "clips", *words]) == 2
        return capsys.readouterr().err

    no_test = [word for word in arguments if "TEST_LIST" not in word and "test.csv" not in word]
    assert "at least one video must be shown, not 0" in error(*arguments, "--samples", "0")
    assert "DATA.TEST_LIST is not set" in error(*no_test, "--part", "test")
    elsewhere = [word.replace(str(data), "/absent") for word in no_test]
    assert "the list /absent/train.csv does not exist" in error(*elsewhere)
