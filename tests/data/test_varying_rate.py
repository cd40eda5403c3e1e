"""Files whose frames are not evenly spaced in time: clips are as long as they say they are."""

import csv
from fractions import Fraction

import av
import numpy as np
import pytest

from tests.data.made_videos import video_list, write_numbered
from tests.data.readers.installed import decoders
from vidcsl.data.dataset import ClipDataset
from vidcsl.data.lists import write_list
from vidcsl.data.prepare.scan import scan
from vidcsl.data.prepare.transcode import Settings, transcode
from vidcsl.data.readers import open_reader
from vidcsl.data.sampling import ViewSampler, random_clips, uniform_clips

STEP = 6  # grey levels from frame to frame
TIMES = np.concatenate([np.arange(30) / 60, 0.5 + np.arange(10)])  # 30 at 60 fps, then one a second


def write_varying(path, *, times=TIMES, codec="libx264", options=None):
    """Frame k is grey of level STEP * k and is shown from times[k] on."""
    clock = Fraction(1, 600)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=60, options={"bf": "2"} | (options or {}))
        stream.height, stream.width = 32, 48
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = clock
        for k, time in enumerate(times):
            pixels = np.full((32, 48, 3), STEP * k, np.uint8)
            pixels[:8] = np.random.default_rng(k).integers(0, 255, (8, 48, 3))
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = round(time / clock), clock
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def on_screen(moments, times=TIMES):
    """Which frames are shown at these moments, in seconds."""
    return [max(k for k, time in enumerate(times) if time <= moment + 1e-4) for moment in moments]


@pytest.fixture(scope="module", params=[".mp4", ".mkv", ".mov", "_plain.mp4"])
def varying(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("varying") / f"clip{request.param}"
    return write_varying(path, options={"bf": "0"} if "plain" in request.param else None)


@pytest.mark.parametrize("backend", decoders())
def test_readers_know_when_each_frame_is_shown(varying, backend):
    with open_reader(varying, backend=backend) as reader:
        assert reader.num_frames == len(TIMES)
        np.testing.assert_allclose(reader.times, TIMES, atol=2e-3)
        assert any("frame rate varies" in note for note in reader.notes)


def test_clips_are_sampled_by_time(varying):
    """At 10 fps four frames are 0.3 seconds apart, wherever the clip begins."""
    draw = lambda length, *, stride, rng: random_clips(  # noqa: E731
        length, frames=4, stride=stride, clips=1, rng=rng
    )
    with open_reader(varying) as reader:
        starts = set()
        for seed in range(40):
            sampler = ViewSampler((draw,), stride=1, fps=10)
            rng = np.random.default_rng(seed)
            (clip,) = sampler(reader.num_frames, reader.fps, rng, times=reader.times)
            begins = [t for t in np.arange(0, 10.5, 0.1 / 6) if on_screen([t]) == [clip[0]]]
            assert clip.tolist() in [on_screen(t + np.arange(4) / 10) for t in begins], clip
            starts.add(int(clip[0]))
        assert min(starts) < 30 < max(starts)  # most of the time is after the thirtieth frame
        whole = ViewSampler(
            (
                lambda length, *, stride, rng: uniform_clips(
                    length, frames=9, stride=stride, clips=1
                ),
            ),
            stride=1,
            fps=1,
        )
        (clip,) = whole(reader.num_frames, reader.fps, None, times=reader.times)
        assert set(np.diff(clip)[2:].tolist()) <= {0, 1}


def test_the_loader_s_samples_follow_the_time(varying):
    draw = lambda length, *, stride, rng: uniform_clips(  # noqa: E731
        length, frames=4, stride=stride, clips=1
    )
    for fps, expected in ((2, 3), (0, 0)):
        dataset = ClipDataset(
            videos=video_list([varying]),
            sampler=ViewSampler((draw,), stride=1, fps=fps),
            short_side=32,
            seed=0,
        )
        sample = dataset[0, 0]
        assert any("frame rate varies" in note for note in sample.notes)
        span = int(sample.frame_indices[0, -1] - sample.frame_indices[0, 0])
        assert span <= expected if fps else span == 3


def test_an_even_rate_is_left_alone(tmp_path):
    for name in ("a.mp4", "a.mkv", "a.avi"):
        codec = "mpeg4" if name.endswith("avi") else "libx264"
        path = write_numbered(tmp_path / name, frames=20, codec=codec)
        with open_reader(path) as reader:
            assert reader.times is None
            assert reader.notes == ()
    # Time stamps in whole milliseconds, and one frame that was dropped, change no frame's place.
    times = np.delete(np.arange(41) / 30, 20)
    with open_reader(write_varying(tmp_path / "b.mkv", times=times)) as reader:
        assert reader.times is None


def test_copies_keep_the_times(varying, tmp_path):
    write_list(tmp_path / "l.csv", [(varying.name, "", "")])
    transcode(
        root=varying.parent,
        lists=[tmp_path / "l.csv"],
        out_root=tmp_path / "copies",
        out=tmp_path / "out",
        settings=Settings(short_side=16),
        workers=1,
    )
    with open_reader(tmp_path / "copies" / varying.with_suffix(".mp4").name) as reader:
        assert reader.num_frames == len(TIMES)
        np.testing.assert_allclose(reader.times, TIMES, atol=3e-3)


def test_scan_names_them(varying, tmp_path):
    write_numbered(tmp_path / "even.mp4", frames=5)
    (tmp_path / varying.name).write_bytes(varying.read_bytes())
    write_list(tmp_path / "all.csv", [("even.mp4", "", ""), (varying.name, "", "")])
    report = scan(root=tmp_path, lists=[tmp_path / "all.csv"], out=tmp_path / "out", workers=1)
    assert "1 x its frame rate varies" in str(report)
    with (tmp_path / "out/facts.csv").open(newline="") as file:
        notes = {row["video"]: row["notes"] for row in csv.DictReader(file)}
    assert notes["even.mp4"] == ""
    assert "frame rate varies" in notes[varying.name]
