import hashlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import av
import numpy as np
import pytest

from tests.data.made_videos import SHARED, STEP, write_numbered
from vidcsl.data.lists import Row, read_rows, write_list
from vidcsl.data.prepare.transcode import Settings, transcode
from vidcsl.data.readers import open_reader
from vidcsl.errors import UserError

SMALL = Settings(short_side=48, gop=4, preset="veryfast")


def write_uneven(path, frames):
    """Numbered frames at uneven times, in MKV."""
    whole = write_numbered(path.with_suffix(".tmp.mp4"), frames=frames)
    with av.open(str(whole)) as source, av.open(str(path), "w") as target:
        stream = target.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 64, 96, "yuv420p"
        for k, frame in enumerate(source.decode(video=0)):
            frame.pts, frame.pict_type = k * k + k, 0
            target.mux(stream.encode(frame))
        target.mux(stream.encode())
    whole.unlink()


@pytest.fixture
def made(tmp_path):
    root = tmp_path / "videos"
    (root / "a").mkdir(parents=True)
    write_numbered(root / "a/b[1].avi", frames=13, codec="mpeg4", options={"bf": "2"})
    write_numbered(root / "a/odd.avi", frames=7, codec="ffv1", pix_fmt="yuv444p", size=(65, 97))
    write_numbered(root / "a/turned.mov", frames=5, rotation=90)
    write_numbered(root / "a/small.mp4", frames=3, size=(32, 40))
    write_uneven(root / "a/odd.mkv", 9)
    names = ("a/b[1].avi", "a/odd.avi", "a/turned.mov", "a/small.mp4", "a/odd.mkv")
    write_list(tmp_path / "train.csv", [Row(name, "a", name) for name in names])
    return {
        "root": root,
        "lists": [tmp_path / "train.csv"],
        "out_root": tmp_path / "copies",
        "out": tmp_path / "out",
        "settings": SMALL,
        "workers": 2,
    }


def greys(path):
    """The level of grey in the middle of every frame, which rises by `STEP`."""
    with open_reader(path, backend="pyav") as reader:
        frames = reader.read(range(reader.num_frames))
    return frames[:, frames.shape[1] // 2, frames.shape[2] // 2].mean(-1)


def packets(path):
    """(keyframe?, presented when, decoded when) of each packet."""
    with av.open(str(path)) as container:
        assert container.streams.video[0].codec_context.name == "h264"
        found = list(container.demux(video=0))[:-1]
        return [(packet.is_keyframe, packet.pts, packet.dts) for packet in found]


def test_every_frame_is_kept_and_none_is_added(made):
    report = transcode(**made)
    rows = read_rows(made["out"] / "train.csv")
    counts = {
        "a/b[1].mp4": (13, 48, 72),
        "a/odd.mp4": (7, 48, 72),
        "a/turned.mp4": (5, 72, 48),
        "a/small.mp4": (3, 32, 40),
        "a/odd.mkv.mp4": (9, 48, 72),
    }
    assert [row.video for row in rows] == list(counts)
    assert [row.group for row in rows] == [row.group for row in read_rows(made["lists"][0])]
    for row, original in zip(rows, read_rows(made["lists"][0]), strict=True):
        path = made["out_root"] / row.video
        frames, height, width = counts[row.video]
        with open_reader(path, backend="pyav") as reader:
            assert (reader.num_frames, reader.height, reader.width) == (frames, height, width)
        assert np.abs(greys(path) - greys(made["root"] / original.video)).max() < STEP / 4
        shown = packets(path)
        keys = [k for k, (is_key, _, _) in enumerate(shown) if is_key]
        assert np.diff([*keys, frames]).max() <= 4
        assert all(pts == dts for _, pts, dts in shown)
        assert report.copies[row.video]["frames"] == frames
    for line in (made["out_root"] / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split("  ", 1)
        assert hashlib.sha256((made["out_root"] / name).read_bytes()).hexdigest() == digest


def test_what_is_there_is_kept_and_what_is_not_is_made(made):
    first = transcode(**made)
    (made["out_root"] / "a/odd.mp4").unlink()
    (made["out_root"] / "a/small.mp4").write_bytes(b"cut short")
    second = transcode(**made)
    assert (first.resumed, second.resumed) == (0, 3)
    assert second.copies == first.copies  # the same bytes again
    assert transcode(**made | {"settings": replace(SMALL, gop=2)}).resumed == 0


def test_a_copy_whose_name_another_takes_is_made_anew(tmp_path):
    root = tmp_path / "videos"
    for name, frames in (("x.mkv", 4), ("x.mov", 6)):
        root.mkdir(exist_ok=True)
        write_numbered(root / name, frames=frames)
    lists, given = [tmp_path / "one.csv"], {"root": root, "out_root": tmp_path / "copies"}
    given |= {"out": tmp_path / "out", "settings": SMALL, "workers": 1}
    write_list(lists[0], [Row("x.mkv", "a", "a")])
    transcode(lists=lists, **given)
    write_list(lists[0], [Row("x.mov", "a", "b"), Row("x.mkv", "a", "a")])
    transcode(lists=lists, **given)
    for row, frames in zip(read_rows(tmp_path / "out/one.csv"), (6, 4), strict=True):
        with open_reader(tmp_path / "copies" / row.video) as reader:
            assert reader.num_frames == frames


def test_damaged_videos_are_reported_and_left_out_only_when_allowed(made):
    path = made["root"] / "a/small.mp4"
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(UserError, match=r"1 videos cannot .* a/small\.mp4 .*the other 4 are done"):
        transcode(**made)
    assert not made["out"].exists()
    report = transcode(**made, allow_damaged=True)
    assert (report.resumed, list(report.failures)) == (5, ["a/small.mp4"])
    assert len(read_rows(made["out"] / "train.csv")) == 4
    assert not (made["out_root"] / "a/small.mp4").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"short_side": 47}, "short side must be even"),
        ({"gop": 0}, "at least 1 frame"),
        ({"crf": 52}, "from 0 to 51"),
        ({"preset": "best"}, "unknown preset 'best', not one of ultrafast"),
    ],
)
def test_faulty_settings(settings, message):
    with pytest.raises(UserError, match=message):
        Settings(**settings)


def test_faulty_places(made, tmp_path):
    with pytest.raises(UserError, match="need a folder of their own"):
        transcode(**made | {"out_root": made["root"]})
    write_list(tmp_path / "out.csv", [Row("../elsewhere.mp4")])
    with pytest.raises(UserError, match="not under the root"):
        transcode(**made | {"lists": [tmp_path / "out.csv"]})
    write_list(tmp_path / "twins.csv", [Row("x.mp4"), Row("x.avi"), Row("x.AVI")])
    with pytest.raises(
        UserError, match=r"x\.AVI: there are already copies called x\.mp4 and x\.AVI"
    ):
        transcode(**made | {"lists": [tmp_path / "twins.csv"]})


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared videos are not here")
def test_colours_of_full_range_and_bt709(tmp_path):
    names = ["intel-sample-videos/again.mkv", "torchcodec/av1_video.mkv"]
    write_list(tmp_path / "l.csv", [Row(name) for name in names])
    places = {"out_root": tmp_path / "copies", "out": tmp_path / "out"}
    root = SHARED / "decoder_assets"
    transcode(root=root, lists=[tmp_path / "l.csv"], workers=2, **places)
    for name in names:
        copy = (places["out_root"] / name).with_suffix(".mp4")
        before, after = (
            open_reader(path, backend="pyav", short_side=32) for path in (root / name, copy)
        )
        assert before.num_frames == after.num_frames
        width = min(before.width, after.width)  # even in the copy
        one, two = (reader.read([0, 40])[:, :, :width].astype(float) for reader in (before, after))
        assert np.abs(one.mean((1, 2)) - two.mean((1, 2))).max() < 3


def leftovers(folder):
    """Files of copies that are being written."""
    return list((folder / "transcode.partial").glob("*"))


SCRIPT = """
from pathlib import Path
from vidcsl.data.prepare.transcode import Settings, transcode
base = Path({base!r})
print(transcode(root=base / "videos", lists=[base / "l.csv"], out_root=base / "copies",
                out=base / "out", settings=Settings(preset="slow"), workers=2))
"""


def test_killed_in_the_middle_and_called_again(tmp_path):
    root, copies = tmp_path / "videos", tmp_path / "copies"
    root.mkdir()
    made = write_numbered(root / "0.avi", frames=20, codec="mpeg4", size=(480, 640))
    for k in range(1, 12):
        os.link(made, root / f"{k}.avi")
    write_list(tmp_path / "l.csv", [Row(f"{k}.avi") for k in range(12)])
    command = [sys.executable, "-c", SCRIPT.format(base=str(tmp_path))]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    record = copies / "transcode.jsonl"
    deadline = time.monotonic() + 120
    while not (record.exists() and record.read_text().count("\n") >= 2 and leftovers(copies)):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    for path in copies.glob("*.mp4"):  # what has appeared is whole
        with open_reader(path, backend="pyav") as reader:
            assert reader.num_frames == 20
    assert not (tmp_path / "out").exists()
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    resumed = int(again.stdout.split("(")[1].split()[0])
    assert 2 <= resumed < 12
    assert "transcode: 12 videos, 240 frames" in again.stdout
    assert len(read_rows(tmp_path / "out" / "l.csv")) == 12
    names = {"transcode.jsonl", "transcode.jsonl.lock", "SHA256SUMS"}
    assert {path.name for path in copies.iterdir()} == names | {f"{k}.mp4" for k in range(12)}
