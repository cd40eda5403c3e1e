import shutil

import pytest

from tests.data.made_videos import SHARED, write_numbered
from vidcsl.data.lists import Row, read_rows, write_list
from vidcsl.data.prepare import scan
from vidcsl.errors import UserError


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
    assert [line.rsplit(",", 2)[0] for line in facts] == [
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
