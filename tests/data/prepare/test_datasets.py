import json
import shutil

import pytest

from tests.data.made_videos import SHARED as DATA
from vidcsl.data.lists import Row, read_list, read_rows
from vidcsl.data.prepare.datasets import (
    prepare_hmdb51,
    prepare_kinetics,
    prepare_ssv2,
    prepare_ucf101,
    source_of,
)
from vidcsl.errors import UserError

OFFICIAL = DATA / "official_splits"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the shared videos are not here")


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


@pytest.fixture
def small_ucf(tmp_path):
    """Two classes in one split, with the odd case of the original data and CRLF line ends."""
    splits = tmp_path / "splits"
    splits.mkdir(exist_ok=True)
    handstand = "HandstandPushups/v_HandStandPushups_g{}_c01.avi"
    yoyo = "YoYo/v_YoYo_g{}_c01.avi"
    lines = {
        "classInd.txt": ["1 HandstandPushups", "2 YoYo"],
        "trainlist01.txt": [handstand.format("01") + " 1", yoyo.format("01") + " 2"],
        "testlist01.txt": [handstand.format("02"), yoyo.format("02")],
    }
    for name, text in lines.items():
        (splits / name).write_bytes("".join(f"{line}\r\n" for line in text).encode())
    root = tmp_path / "videos"
    touch(root, *(name.format(k) for name in (handstand, yoyo) for k in ("01", "02")))
    return {"root": root, "splits": splits, "out": tmp_path / "lists", "subset": True}


def test_ucf101_lists_read_back(small_ucf):
    report = prepare_ucf101(**small_ucf)
    out = small_ucf["out"]
    assert report.lists == {out / "train_split1.csv": 2, out / "test_split1.csv": 2}
    assert (report.videos, report.groups, report.missing) == (4, 4, ())
    train = read_list(out / "train_split1.csv", root=small_ucf["root"])
    assert train.classes == report.classes == ("HandstandPushups", "YoYo")
    assert all(video.path.is_file() for video in train.videos)
    assert "ucf101: 2 classes, 4 videos, 4 groups" in str(report)
    assert "train_split1.csv: 2 videos" in str(report)


def change(small_ucf, name, old, new):
    path = small_ucf["splits"] / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("trainlist01.txt", "v_YoYo_g01_c01.avi 2", "v_YoYo_g02_c01.avi 2", "1 videos are in both"),
        (
            "trainlist01.txt",
            "v_YoYo_g01_c01",
            "v_YoYo_g02_c07",
            "1 groups are in both .*v_YoYo_g02",
        ),
        ("trainlist01.txt", "avi 2", "avi 1", "v_YoYo_g01_c01.avi has number 1"),
        ("testlist01.txt", "YoYo/v_Y", "YoYo/v_X", "not named v_<class>_g"),
        ("testlist01.txt", "YoYo/v", "Mixing/v", "class is not in classInd"),
        ("classInd.txt", "2 YoYo", "YoYo", "expected lines 'number class', found 'YoYo'"),
    ],
)
def test_faults_of_ucf101_split_files(small_ucf, name, old, new, message):
    change(small_ucf, name, old, new)
    with pytest.raises(UserError, match=message):
        prepare_ucf101(**small_ucf)
    assert not small_ucf["out"].exists()


def test_cut_split_files_need_the_subset_option(small_ucf):
    for k in (2, 3):
        for part in ("train", "test"):
            shutil.copy(
                small_ucf["splits"] / f"{part}list01.txt",
                small_ucf["splits"] / f"{part}list0{k}.txt",
            )
    with pytest.raises(UserError, match="classes: 2 where the official lists have 101"):
        prepare_ucf101(**small_ucf | {"subset": False})


def test_missing_videos_are_reported_and_left_out_only_when_allowed(small_ucf):
    (small_ucf["root"] / "YoYo/v_YoYo_g01_c01.avi").unlink()
    with pytest.raises(UserError, match=r"lacks 1 videos \(YoYo 1\): YoYo/v_YoYo_g01_c01\.avi"):
        prepare_ucf101(**small_ucf)
    assert not small_ucf["out"].exists()
    report = prepare_ucf101(**small_ucf, allow_missing=True)
    assert [row.video for row in report.missing] == ["YoYo/v_YoYo_g01_c01.avi"]
    assert "left out: 1 videos (YoYo 1)" in str(report)
    assert len(read_rows(small_ucf["out"] / "train_split1.csv")) == 1


def test_transcoded_copies_are_named_as_they_are(small_ucf):
    path = small_ucf["root"] / "YoYo/v_YoYo_g01_c01.avi"
    path.rename(path.with_suffix(".mp4"))
    report = prepare_ucf101(**small_ucf)
    rows = read_rows(small_ucf["out"] / "train_split1.csv")
    assert rows[1] == Row("YoYo/v_YoYo_g01_c01.mp4", "YoYo", "v_YoYo_g01")
    assert "1 videos were found under another suffix" in report.notes


def test_classes_can_be_chosen(small_ucf):
    assert prepare_ucf101(**small_ucf, classes=["YoYo"]).classes == ("YoYo",)
    with pytest.raises(UserError, match="no class Juggling: see HandstandPushups, YoYo"):
        prepare_ucf101(**small_ucf, classes=["Juggling"])
    shutil.rmtree(small_ucf["root"] / "YoYo")
    assert prepare_ucf101(**small_ucf).classes == ("HandstandPushups",)


@needs_data
def test_the_cut_of_ucf101(tmp_path):
    root, splits = DATA / "ucf101_10" / "videos", DATA / "ucf101_10" / "splits"
    report = prepare_ucf101(root=root, splits=splits, out=tmp_path, subset=True)
    assert list(report.lists.values()) == [528, 212, 535, 205, 533, 207]
    assert report.videos == 740
    assert report.missing == ()
    # The official lists name .avi files; restricted to what is there they give the same lists.
    prepare_ucf101(
        root=root,
        splits=OFFICIAL / "ucf101_splits",
        out=tmp_path / "official",
        classes=report.classes,
        allow_missing=True,
    )
    for path in report.lists:
        again = read_rows(tmp_path / "official" / path.name)
        assert sorted(again) == sorted(read_rows(path))


@pytest.mark.parametrize(
    ("name", "class_name", "source"),
    [
        ("TrumanShow_wave_f_nm_np1_fr_med_26.avi", "wave", "TrumanShow"),
        (
            "6arrowswithin30seconds_shoot_bow_f_nm_np1_fr_med_3.avi",
            "shoot_bow",
            "6arrowswithin30seconds",
        ),
        ("how_to_kick_ball_kick_ball_f_cm_np1_ba_goo_0.avi", "kick_ball", "how_to_kick_ball"),
        ("a;_,-)_[x]!_wave_wave_u_cm_np2_le_bad_1.avi", "wave", "a;_,-)_[x]!_wave"),
    ],
)
def test_the_source_in_an_hmdb51_name(name, class_name, source):
    assert source_of(name, class_name) == source


@pytest.fixture
def small_hmdb(tmp_path):
    """Two classes; the film gives training clips of one and test clips of the other."""
    splits = tmp_path / "splits"
    splits.mkdir(exist_ok=True)
    marks = {"wave": {"Film": 1, "Home": 2, "Spare": 0}, "shoot_bow": {"Film": 2, "Club, (1)": 1}}
    for name, sources in marks.items():
        clips = {f"{s}_{name}_f_cm_np1_fr_med_0.avi": mark for s, mark in sources.items()}
        text = "".join(f"{clip} {mark} \n" for clip, mark in clips.items())
        (splits / f"{name}_test_split1.txt").write_text(text)
        touch(tmp_path / "videos", *(f"{name}/{clip}" for clip in clips))
    return {
        "root": tmp_path / "videos",
        "splits": splits,
        "out": tmp_path / "lists",
        "subset": True,
    }


def test_hmdb51_marks_sources_and_shared_sources(small_hmdb):
    report = prepare_hmdb51(**small_hmdb)
    train, test = (read_rows(path) for path in report.lists)
    assert {(row.class_name, row.group) for row in train} == {
        ("wave", "Film"),
        ("shoot_bow", "Club, (1)"),
    }
    assert {(row.class_name, row.group) for row in test} == {
        ("wave", "Home"),
        ("shoot_bow", "Film"),
    }
    assert report.notes == (
        "split 1: 1 sources give training and test clips, of different classes",
    )


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("med_0.avi 1", "med_0.avi 3", "line 1: expected 'name.avi 0|1|2'"),
        ("Film_wave_f_cm_np1", "Film_wave_f_cm", "line 1: .* is not named <source>_wave_"),
        ("Home", "Film", "line 2: .* is listed twice"),
        ("Home_wave_f_cm_np1_fr", "Film_wave_f_cm_np1_le", "1 sources are in both .*wave/Film"),
    ],
)
def test_faults_of_hmdb51_split_files(small_hmdb, old, new, message):
    path = small_hmdb["splits"] / "wave_test_split1.txt"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(UserError, match=message):
        prepare_hmdb51(**small_hmdb)


def test_hmdb51_totals_are_checked(small_hmdb):
    with pytest.raises(UserError, match="classes: 2 where the official lists have 51"):
        prepare_hmdb51(**small_hmdb | {"subset": False})
    with pytest.raises(UserError, match=r"holds no <class>_test_split<k>\.txt"):
        prepare_hmdb51(**small_hmdb | {"splits": small_hmdb["root"]})


@needs_data
def test_the_official_hmdb51_lists(tmp_path):
    splits = OFFICIAL / "hmdb51_splits"
    lines = (splits / "wave_test_split1.txt").read_text().splitlines()
    touch(tmp_path / "videos", *(f"wave/{line.split()[0]}" for line in lines))
    report = prepare_hmdb51(
        root=tmp_path / "videos", splits=splits, out=tmp_path / "lists", classes=["wave"]
    )
    assert list(report.lists.values()) == [70, 30] * 3


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
def small_kinetics(tmp_path):
    touch(tmp_path / "videos", *FILES)
    for name, text in {"train.csv": TRAIN, "kinetics_val.csv": VAL}.items():
        (tmp_path / name).write_text(text)
    return {
        "root": tmp_path / "videos",
        "annotations": [tmp_path / "train.csv", tmp_path / "kinetics_val.csv"],
        "out": tmp_path / "lists",
    }


def test_kinetics_files_are_found_under_their_names(small_kinetics):
    report = prepare_kinetics(**small_kinetics)
    assert [path.name for path in report.lists] == ["train.csv", "val.csv"]
    assert read_rows(small_kinetics["out"] / "train.csv") == [
        Row(FILES[0], "playing harp", "-0abcdefghi"),
        Row(FILES[1], 'cooking "on campfire"', "aaaaaaaaaaa"),
        Row(FILES[2], "playing harp", "bbbbbbbbbbb"),
    ]
    assert read_rows(small_kinetics["out"] / "val.csv") == [
        Row(FILES[3], "playing harp", "aaaaaaaaaaa")
    ]
    assert report.notes == (
        "1 lines that repeat a video were left out",
        "val: 1 groups are in an earlier list too: aaaaaaaaaaa",
    )


def test_links_to_folders_are_followed_and_rings_end(small_kinetics, tmp_path):
    (small_kinetics["root"] / "train").rename(tmp_path / "elsewhere")
    (small_kinetics["root"] / "train").symlink_to(tmp_path / "elsewhere")
    (small_kinetics["root"] / "b/ring").symlink_to(small_kinetics["root"])
    prepare_kinetics(**small_kinetics)
    assert read_rows(small_kinetics["out"] / "train.csv")[0].video == FILES[0]


def test_annotations_are_not_overwritten(small_kinetics, tmp_path):
    with pytest.raises(UserError, match=r"would overwrite .*train\.csv"):
        prepare_kinetics(**small_kinetics | {"out": tmp_path})
    assert (tmp_path / "train.csv").read_text() == TRAIN


def test_missing_clips_are_reported(small_kinetics):
    (small_kinetics["root"] / FILES[0]).unlink()
    with pytest.raises(UserError, match=r"lacks 1 videos \(playing harp 1\): .*-0abcdefghi_000007"):
        prepare_kinetics(**small_kinetics)
    report = prepare_kinetics(**small_kinetics, allow_missing=True, classes=["playing harp"])
    assert (report.videos, len(report.missing)) == (2, 1)


def test_json_and_secret_labels(small_kinetics, tmp_path):
    clips = {
        "-0abcdefghi": {
            "annotations": {"label": "a", "segment": [7.0, 17.0]},
            "subset": "training",
        },
        "aaaaaaaaaaa": {"annotations": {"segment": [50, 60]}, "subset": "test"},
    }
    (tmp_path / "all.json").write_text(json.dumps(clips))
    prepare_kinetics(**small_kinetics | {"annotations": [tmp_path / "all.json"]})
    assert read_rows(small_kinetics["out"] / "train.csv") == [Row(FILES[0], "a", "-0abcdefghi")]
    assert read_rows(small_kinetics["out"] / "test.csv") == [Row(FILES[3], "", "aaaaaaaaaaa")]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "label,time_start,time_end\n", "line 1: no column youtube_id"),
        ("a.csv", HEAD + "a,aaaaaaaaaaa,x,10,train,0\n", "line 2: the times are not two numbers"),
        ("a.csv", HEAD + "a,,0,10,train,0\n", "line 2: youtube_id is missing"),
        ("a.csv", HEAD, "contains no clip"),
        ("a.json", "{", "not readable as JSON"),
        ("a.json", "[1]", "an object with one clip per"),
        ("a.json", '{"x": {"annotations": {}}}', "x has no annotations with a segment"),
        ("a.csv", None, "cannot read .*a.csv: No such file"),
    ],
)
def test_faulty_annotations_of_kinetics(small_kinetics, tmp_path, name, text, message):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        prepare_kinetics(**small_kinetics | {"annotations": [tmp_path / name]})
    assert not small_kinetics["out"].exists()


def test_faulty_options_of_kinetics(small_kinetics):
    with pytest.raises(UserError, match="no class 'juggling'"):
        prepare_kinetics(**small_kinetics, classes=["juggling"])
    with pytest.raises(UserError, match=r"folder .*absent does not exist"):
        prepare_kinetics(**small_kinetics | {"root": small_kinetics["root"] / "absent"})


HOLDING = "Holding something next to something"
LIFTING = "Lifting something up completely, then letting it drop down"
ENTRIES = [
    {
        "id": "78687",
        "label": "holding potato next to vicks vaporub bottle",
        "template": "Holding [something] next to [something]",
        "placeholders": ["potato", "vicks vaporub bottle"],
    },
    {"id": "9", "template": "Lifting [something] up completely, then letting it drop down"},
]


@pytest.fixture
def small_ssv2(tmp_path):
    touch(tmp_path / "videos", "78687.webm", "9.webm", "11.webm")
    files = {
        "labels.json": {HOLDING: "0", LIFTING: "1"},
        "something-something-v2-train.json": ENTRIES,
        "test.json": [{"id": "11"}],
    }
    for name, document in files.items():
        (tmp_path / name).write_text(json.dumps(document))
    return {
        "root": tmp_path / "videos",
        "labels": tmp_path / "labels.json",
        "annotations": [tmp_path / "something-something-v2-train.json", tmp_path / "test.json"],
        "out": tmp_path / "lists",
    }


def test_ssv2_lists_read_back(small_ssv2):
    report = prepare_ssv2(**small_ssv2)
    assert read_rows(small_ssv2["out"] / "train.csv") == [
        Row("78687.webm", HOLDING),
        Row("9.webm", LIFTING),
    ]
    assert read_rows(small_ssv2["out"] / "test.csv") == [Row("11.webm")]
    assert (report.videos, report.groups) == (3, 0)


def test_ssv2_answers_of_the_test_split(small_ssv2, tmp_path):
    (tmp_path / "test-answers.csv").write_text(f"11;{HOLDING}\n")
    report = prepare_ssv2(**small_ssv2 | {"annotations": [tmp_path / "test-answers.csv"]})
    assert read_rows(next(iter(report.lists))) == [Row("11.webm", HOLDING)]


def test_missing_and_chosen_videos_of_ssv2(small_ssv2):
    (small_ssv2["root"] / "9.webm").unlink()
    with pytest.raises(UserError, match=r"lacks 1 videos \(Lifting something.*\): 9\.webm"):
        prepare_ssv2(**small_ssv2)
    assert prepare_ssv2(**small_ssv2, allow_missing=True).missing == (Row("9.webm", LIFTING),)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", "{}", "contains no video"),
        ("a.json", '{"a": 1}', "expected a list of"),
        (
            "a.json",
            '[{"id": "9", "template": "Juggling [something]"}]',
            "9 has the class 'Juggling",
        ),
        ("a.csv", "11,x\n", "line 1: expected 'id;class', found '11,x'"),
    ],
)
def test_faulty_annotations_of_ssv2(small_ssv2, tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        prepare_ssv2(**small_ssv2 | {"annotations": [tmp_path / name]})


def test_faulty_options_of_ssv2(small_ssv2, tmp_path):
    with pytest.raises(UserError, match=r"ssv2: the annotations have no class 'x'"):
        prepare_ssv2(**small_ssv2, classes=["x"])
    (tmp_path / "labels.json").write_text("[]")
    with pytest.raises(UserError, match="expected an object with a number"):
        prepare_ssv2(**small_ssv2)
