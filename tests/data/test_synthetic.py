import json

import av
import numpy as np
import pytest

from vidcsl.data.lists import read_list, read_rows
from vidcsl.data.synthetic import CLASSES, MOTIONS, draw_source, generate, render, write_video
from vidcsl.errors import UserError
from vidcsl.seeding import numpy_generator

SMALL = {
    "classes": ("sway", "grow"),
    "sources_per_class": 4,
    "clips_per_source": 2,
    "frames": 5,
    "size": 16,
}


def decode(path):
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        return np.stack(frames), stream.codec_context.name, stream.average_rate


def clip(motion, *, source=0, number=0, frames=48, size=32):
    looks = draw_source(numpy_generator(0, "source", motion, source), size=size)
    generator = numpy_generator(0, "clip", motion, source, number)
    return render(looks, motion=motion, frames=frames, size=size, generator=generator)


def times(root):
    return {path: path.stat().st_mtime_ns for path in root.glob("**/*") if path.is_file()}


def test_lists_share_no_source_and_name_what_is_there(tmp_path):
    lists = generate(tmp_path, **SMALL)
    assert lists == (tmp_path / "train.csv", tmp_path / "test.csv")
    train, test = (read_list(path, root=tmp_path) for path in lists)
    assert (len(train), len(test)) == (2 * 3 * 2, 2 * 1 * 2)
    assert train.classes == test.classes == ("grow", "sway")
    groups = [{row.group for row in read_rows(path)} for path in lists]
    assert groups[0].isdisjoint(groups[1])
    assert sorted(video.path for video in [*train.videos, *test.videos]) == sorted(
        tmp_path.glob("videos/*/*.mp4")
    )
    assert (tmp_path / "videos/grow/grow_g04_c02.mp4").is_file()


def test_files_hold_the_rendered_frames(tmp_path):
    path = tmp_path / "a.mp4"
    frames = clip("orbit", frames=12, size=64)
    write_video(path, frames, fps=25)
    decoded, codec, rate = decode(path)
    assert (codec, rate) == ("h264", 25)
    assert decoded.shape == frames.shape
    # Colour is kept at half size and noise is mostly lost, so near, frame by frame, is enough.
    error = np.abs(decoded.astype(float)[:, None] - frames[None]).mean((2, 3, 4))  # [T, T]
    assert np.diag(error).max() < 8
    assert (error.argmin(axis=1) == np.arange(12)).all()
    assert [file.name for file in tmp_path.iterdir()] == ["a.mp4"]


@pytest.mark.parametrize("motion", CLASSES)
def test_rendering_repeats_to_the_bit_and_moves(motion):
    frames = clip(motion)
    assert frames.shape == (48, 32, 32, 3)
    assert frames.dtype == np.uint8
    assert (frames == clip(motion)).all()
    assert (frames != clip(motion, number=1)).any()
    # 0.02 of noise would change a pixel by 6 on average; the object adds to that.
    assert np.abs(frames[8:].astype(int) - frames[:-8]).max() > 40


@pytest.mark.parametrize("size", [16, 18, 30, 64, 100])
def test_every_size_fits_its_background(size):
    for source in range(20):
        assert clip("bob", source=source, frames=4, size=size).shape == (4, size, size, 3)


@pytest.mark.parametrize("motion", CLASSES)
def test_a_mirrored_motion_is_of_its_own_class(motion):
    turns = np.linspace(0, 3, 50, dtype=np.float32)
    mirrored = MOTIONS[motion](turns, 0.2, 1)

    def matches(shift):
        other = MOTIONS[motion](turns + np.float32(shift), 0.2, -1)
        turned = np.diff(np.broadcast_to(other.angle, 50)) + np.diff(
            np.broadcast_to(mirrored.angle, 50)
        )
        return (
            np.allclose(other.x, -np.asarray(mirrored.x), atol=1e-4)
            and np.allclose(other.y, mirrored.y, atol=1e-4)
            and np.allclose(other.scale, mirrored.scale)
            and np.allclose(other.opacity, mirrored.opacity)
            and np.allclose(turned, 0, atol=1e-5)
        )

    assert matches(0) or matches(0.5)


def test_clips_of_a_source_look_alike_and_other_sources_do_not():
    colours = np.array(
        [[clip("spin", source=s, number=n).mean((0, 1, 2)) for n in (0, 1)] for s in range(12)]
    )
    colours -= colours.mean(2, keepdims=True)  # exposure differs from clip to clip
    distance = np.linalg.norm(colours[:, None, 0] - colours[None, :, 1], axis=-1)
    assert (distance.argmin(axis=1) == np.arange(12)).mean() > 0.7


def motion_statistics(frames):
    """Spread and drift of the moving part's place and area."""
    grey = frames.mean(-1) / 255
    moving = np.abs(grey - np.median(grey, axis=0)) > 0.12  # [T, H, W]
    place = (np.arange(32) + 0.5) / 32
    area = moving.mean((1, 2)) + 1e-3
    x = (moving * place).mean((1, 2)) / area
    y = (moving * place[:, None]).mean((1, 2)) / area
    series = np.stack([x, y, np.log(area)])
    steps = series[:, 2:] - series[:, :-2]
    return np.concatenate([series.std(1), np.median(steps, 1), np.abs(steps).mean(1)])


def neighbour_accuracy(features, labels, sources):
    """Nearest neighbour among clips of other sources, columns in units of their spread."""
    features = (features - features.mean(0)) / (features.std(0) + 1e-6)
    distance = np.linalg.norm(features[:, None] - features[None], axis=-1)
    distance[sources[:, None] == sources[None]] = np.inf
    return (labels[distance.argmin(axis=1)] == labels).mean()


def test_motion_tells_the_class_and_appearance_does_not():
    keys = [(label, source) for label in range(len(CLASSES)) for source in range(16)]
    clips = [clip(CLASSES[label], source=source) for label, source in keys]
    labels = np.array([label for label, _ in keys])
    sources = np.arange(len(keys))
    mean_frames = np.stack([frames.mean(0)[::4, ::4].ravel() for frames in clips])
    statistics = np.stack([motion_statistics(frames) for frames in clips])
    chance = 1 / len(CLASSES)
    assert neighbour_accuracy(mean_frames, labels, sources) < 2 * chance
    assert neighbour_accuracy(statistics, labels, sources) > 4 * chance


def test_finished_folders_are_left_alone(tmp_path):
    generate(tmp_path, **SMALL)
    before = times(tmp_path)
    generate(tmp_path, **SMALL)
    assert times(tmp_path) == before


def test_an_interrupted_folder_is_completed(tmp_path):
    generate(tmp_path, **SMALL)
    lost = tmp_path / "videos/sway/sway_g02_c01.mp4"
    frames, *_ = decode(lost)
    lost.unlink()
    before = times(tmp_path / "videos")
    generate(tmp_path, **SMALL)
    after = times(tmp_path / "videos")
    assert set(after) - set(before) == {lost}
    assert before.items() <= after.items()
    assert np.abs(decode(lost)[0].astype(float) - frames).mean() < 3
    assert json.loads((tmp_path / "synthetic.json").read_text())["finished"] is True


def test_other_arguments_replace_the_videos(tmp_path):
    generate(tmp_path, **SMALL)
    old, *_ = decode(tmp_path / "videos/sway/sway_g01_c01.mp4")
    lists = generate(tmp_path, **SMALL | {"clips_per_source": 1, "seed": 1})
    new, *_ = decode(tmp_path / "videos/sway/sway_g01_c01.mp4")
    assert np.abs(new.astype(float) - old).mean() > 10
    listed = {tmp_path / row.video for path in lists for row in read_rows(path)}
    assert listed == set(tmp_path.glob("videos/*/*"))


def test_foreign_files_are_not_touched(tmp_path):
    (tmp_path / "train.csv").write_text("mine")
    with pytest.raises(UserError, match=r"train\.csv was not made by this command"):
        generate(tmp_path, **SMALL)
    assert (tmp_path / "train.csv").read_text() == "mine"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": ("jump",)}, "classes must be some of sway, bob"),
        ({"classes": ()}, "classes must be"),
        ({"classes": ("sway", "sway")}, "each once"),
        ({"sources_per_class": 1}, "sources_per_class must be at least 2"),
        ({"frames": 0}, "frames must be at least 1"),
        ({"size": 33}, "size must be even"),
    ],
)
def test_wrong_arguments_are_refused(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        generate(tmp_path / "x", **SMALL | options)
    assert not (tmp_path / "x").exists()
