import json

import pytest

from tests.data.prepare.test_official import touch
from vidcsl.data.lists import Row, read_rows
from vidcsl.data.prepare import datasets as kinetics
from vidcsl.errors import UserError

HEAD = "label,youtube_id,time_start,time_end,split,is_cc\n"
TRAIN = HEAD + (
    "playing harp,-0abcdefghi,7,17,train,0\n"
    'cooking "on campfire",aaaaaaaaaaa,2,12,train,0\n'
    "playing harp,bbbbbbbbbbb,100.0,110.0,train,0\n"
    "playing harp,bbbbbbbbbbb,100.0,110.0,train,0\n"
)
VAL = HEAD + "playing harp,aaaaaaaaaaa,50,60,validate,0\n"
FILES = (
    "train/playing_harp/-0abcdefghi_000007_000017.mp4",
    "replacement/aaaaaaaaaaa_2_12.webm",
    "b/deep/bbbbbbbbbbb.mkv",
    "aaaaaaaaaaa_000050_000060.mp4",
)


@pytest.fixture
def small(tmp_path):
    touch(tmp_path / "videos", *FILES)
    for name, text in {"train.csv": TRAIN, "kinetics_val.csv": VAL}.items():
        (tmp_path / name).write_text(text)
    return {
        "root": tmp_path / "videos",
        "annotations": [tmp_path / "train.csv", tmp_path / "kinetics_val.csv"],
        "out": tmp_path / "lists",
    }


def test_files_are_found_under_their_names(small):
    report = kinetics.prepare_kinetics(**small)
    assert [path.name for path in report.lists] == ["train.csv", "val.csv"]
    assert read_rows(small["out"] / "train.csv") == [
        Row(FILES[0], "playing harp", "-0abcdefghi"),
        Row(FILES[1], 'cooking "on campfire"', "aaaaaaaaaaa"),
        Row(FILES[2], "playing harp", "bbbbbbbbbbb"),
    ]
    assert read_rows(small["out"] / "val.csv") == [Row(FILES[3], "playing harp", "aaaaaaaaaaa")]
    assert report.notes == (
        "1 lines that repeat a video were left out",
        "val: 1 groups are in an earlier list too: aaaaaaaaaaa",
    )


def test_links_to_folders_are_followed_and_rings_end(small, tmp_path):
    (small["root"] / "train").rename(tmp_path / "elsewhere")
    (small["root"] / "train").symlink_to(tmp_path / "elsewhere")
    (small["root"] / "b/ring").symlink_to(small["root"])
    kinetics.prepare_kinetics(**small)
    assert read_rows(small["out"] / "train.csv")[0].video == FILES[0]


def test_annotations_are_not_overwritten(small, tmp_path):
    with pytest.raises(UserError, match=r"would overwrite .*train\.csv"):
        kinetics.prepare_kinetics(**small | {"out": tmp_path})
    assert (tmp_path / "train.csv").read_text() == TRAIN


def test_missing_clips_are_told(small):
    (small["root"] / FILES[0]).unlink()
    with pytest.raises(UserError, match=r"lacks 1 videos \(playing harp 1\): .*-0abcdefghi_000007"):
        kinetics.prepare_kinetics(**small)
    report = kinetics.prepare_kinetics(**small, allow_missing=True, classes=["playing harp"])
    assert (report.videos, len(report.missing)) == (2, 1)


def test_json_and_secret_labels(small, tmp_path):
    clips = {
        "-0abcdefghi": {
            "annotations": {"label": "a", "segment": [7.0, 17.0]},
            "subset": "training",
        },
        "aaaaaaaaaaa": {"annotations": {"segment": [50, 60]}, "subset": "test"},
    }
    (tmp_path / "all.json").write_text(json.dumps(clips))
    kinetics.prepare_kinetics(**small | {"annotations": [tmp_path / "all.json"]})
    assert read_rows(small["out"] / "train.csv") == [Row(FILES[0], "a", "-0abcdefghi")]
    assert read_rows(small["out"] / "test.csv") == [Row(FILES[3], "", "aaaaaaaaaaa")]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "label,time_start,time_end\n", "line 1: no column youtube_id"),
        ("a.csv", HEAD + "a,aaaaaaaaaaa,x,10,train,0\n", "line 2: the times are not two numbers"),
        ("a.csv", HEAD + "a,,0,10,train,0\n", "line 2: there is no youtube_id"),
        ("a.csv", HEAD, "names no clip"),
        ("a.json", "{", "not readable as JSON"),
        ("a.json", "[1]", "an object with a clip for each"),
        ("a.json", '{"x": {"annotations": {}}}', "x has no annotations with a segment"),
        ("a.csv", None, "cannot read .*a.csv: No such file"),
    ],
)
def test_faulty_annotations(small, tmp_path, name, text, message):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        kinetics.prepare_kinetics(**small | {"annotations": [tmp_path / name]})
    assert not small["out"].exists()


def test_faulty_options(small):
    with pytest.raises(UserError, match="no class 'juggling'"):
        kinetics.prepare_kinetics(**small, classes=["juggling"])
    with pytest.raises(UserError, match=r"folder .*absent does not exist"):
        kinetics.prepare_kinetics(**small | {"root": small["root"] / "absent"})
