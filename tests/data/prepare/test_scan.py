import shutil

import av
import numpy as np
import pytest

from tests.data.made_videos import SHARED, write_numbered
from vidcsl.data.lists import Row, read_rows, write_list
from vidcsl.data.prepare import scan
from vidcsl.data.prepare.declared import falls_short
from vidcsl.errors import UserError, VideoError


@pytest.fixture
def made(tmp_path):
    """Sound and damaged videos, in two lists that share one."""
    root = tmp_path / "videos"
    root.mkdir()
    write_numbered(root / "sound.mp4", frames=6, options={"g": "3"})
    whole = write_numbered(root / "bframes.avi", frames=9, codec="mpeg4", options={"bf": "2"})
    content = whole.read_bytes()
    (root / "cut.avi").write_bytes(content[: len(content) // 2])
    flipped = bytearray((root / "sound.mp4").read_bytes())
    place = flipped.index(b"mdat")
    flipped[place + 1200 : place + 2600] = bytes(1400)
    (root / "flipped.mp4").write_bytes(flipped)
    (root / "empty.mp4").touch()
    (root / "text.mp4").write_text("not a video" * 100)
    names = ("sound.mp4", "flipped.mp4", "bframes.avi", "empty.mp4", "text.mp4", "absent.mp4")
    write_list(tmp_path / "train.csv", [Row(name, "a", name) for name in names])
    write_list(tmp_path / "test.csv", [Row("sound.mp4", "a"), Row("cut.avi", "a")])
    lists = [tmp_path / "train.csv", tmp_path / "test.csv"]
    return {"root": root, "lists": lists, "out": tmp_path / "out", "workers": 2}


def test_only_what_decodes_whole_stays_in_the_lists(made):
    report = scan.scan(**made)
    assert report.videos == 7
    assert [row.video for row in read_rows(made["out"] / "train.csv")] == [
        "sound.mp4",
        "bframes.avi",
    ]
    table = (made["out"] / "quarantine.csv").read_text().splitlines()
    reasons = dict(line.split(",", 1) for line in table)
    assert reasons.pop("video") == "reason"
    assert reasons == dict(report.quarantine)
    assert reasons["absent.mp4"] == "there is no such file"
    assert "empty" in reasons["empty.mp4"]
    assert "not a readable video" in reasons["text.mp4"]
    assert "flipped.mp4" in reasons
    facts = (made["out"] / "facts.csv").read_text().splitlines()
    assert [line.rsplit(",", 3)[0] for line in facts] == [
        "video,frames,fps,width,height,codec",
        "sound.mp4,6,25.0,96,64,h264",
        "bframes.avi,9,25.0,96,64,mpeg4",
        *([] if "cut.avi" in reasons else ["cut.avi,5,25.0,96,64,mpeg4"]),
    ]
    assert f"{7 - len(reasons)} sound, {len(reasons)} set aside" in str(report)


def test_a_second_call_looks_at_what_changed_only(made):
    first = scan.scan(**made)
    shutil.copy(made["root"] / "sound.mp4", made["root"] / "empty.mp4")
    second = scan.scan(**made)
    assert (first.resumed, second.resumed) == (0, 6)
    assert set(first.quarantine) - set(second.quarantine) == {"empty.mp4"}
    assert "empty.mp4" in [row.video for row in read_rows(made["out"] / "train.csv")]


def test_a_list_of_which_nothing_is_left_does_not_keep_what_it_was(made):
    scan.scan(**made)
    for name in ("sound.mp4", "cut.avi"):
        (made["root"] / name).write_bytes(b"")
    report = scan.scan(**made)
    assert not (made["out"] / "test.csv").exists()
    assert report.lists[made["out"] / "test.csv"] == 0


def test_faults(made, tmp_path):
    with pytest.raises(UserError, match=r"would overwrite .*train\.csv"):
        scan.scan(**made | {"out": tmp_path})
    twins = [*made["lists"], tmp_path / "other" / "train.csv"]
    twins[-1].parent.mkdir()
    shutil.copy(twins[0], twins[-1])
    with pytest.raises(UserError, match="two of the lists have the same name"):
        scan.scan(**made | {"lists": twins})
    with pytest.raises(UserError, match=r"absent\.csv does not exist"):
        scan.scan(**made | {"lists": [tmp_path / "absent.csv"]})


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared videos are not here")
def test_odd_files(tmp_path):
    names = {
        "decord/corrupted.mp4": None,
        "decord/video_90.mov": 3,
        "torchcodec/av1_video.mkv": 125,
        "torchcodec/h265_10bits.mp4": 30,
        "mmaction2/demo_spatiotemporal_det.mp4": 57,
        "hmdb51-jppinto/6arrowswithin30seconds_shoot_bow_f_nm_np1_fr_med_3.avi": 81,
    }
    write_list(tmp_path / "odd.csv", [Row(name) for name in names])
    report = scan.scan(
        root=SHARED / "decoder_assets",
        lists=[tmp_path / "odd.csv"],
        out=tmp_path / "out",
        workers=2,
    )
    assert list(report.quarantine) == ["decord/corrupted.mp4"]
    facts = (tmp_path / "out" / "facts.csv").read_text().splitlines()[1:]
    counts = {line.split(",")[0]: int(line.split(",")[1]) for line in facts}
    assert counts == {name: count for name, count in names.items() if count}


# Files that were cut off --------------------------------------------------------------------------


def long_video(path, *, codec, options=None, frames=100):
    """A file of noise, whose bytes are spread evenly over its frames."""
    noise = np.random.default_rng(0).integers(0, 255, (frames, 32, 32, 3), np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options or {})
        stream.height = stream.width = 32
        stream.pix_fmt = "rgb8" if codec == "gif" else "yuv420p"
        for pixels in noise:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.webm", "libvpx"), ("a.mkv", "mpeg4"), ("a.avi", "mpeg4"), ("a.gif", "gif")],
)
def test_a_file_that_was_cut_off_anywhere_is_set_aside(tmp_path, name, codec):
    whole = long_video(tmp_path / name, codec=codec)
    facts = scan.examine(whole, "auto")
    assert facts["frames"] == 100
    assert facts["declared"] in ("", 100)
    content = whole.read_bytes()
    for share in (0.2, 0.37, 0.5, 0.77, 0.93, 0.99):
        cut = tmp_path / f"cut{share}{whole.suffix}"
        cut.write_bytes(content[: int(share * len(content))])
        with pytest.raises(VideoError):
            scan.examine(cut, "auto")


@pytest.mark.parametrize(("read", "declared", "short"), [(94, 100, False), (91, 100, True)])
def test_headers_may_be_off_by_a_few(read, declared, short):
    assert falls_short(read, declared) == short
    assert not falls_short(read, 0)
    assert not falls_short(960, 1000)


def test_the_reason_counts_frames(tmp_path):
    """A stream has no size of its own; its header still says how long it is."""
    whole = long_video(tmp_path / "a.mkv", codec="mpeg4")
    content = bytearray(whole.read_bytes()[: whole.stat().st_size // 2])
    segment = content.index(b"\x18\x53\x80\x67") + 4
    content[segment : segment + 8] = b"\x01" + b"\xff" * 7  # unknown size
    (tmp_path / "cut.mkv").write_bytes(content)
    with pytest.raises(VideoError, match=r"cut off: \d\d of (99|100) declared frames$"):
        scan.examine(tmp_path / "cut.mkv", "auto")
