import pytest

from tests.data.prepare.test_datasets import touch
from vidcsl.data.lists import Row, read_list, read_rows
from vidcsl.data.prepare import convert
from vidcsl.errors import UserError

FILES = ("a b/x.mp4", "b/v_b_g01_c01.mp4", "b/v_b_g01_c02.mp4", "c/z.mp4")


@pytest.fixture
def small(tmp_path):
    touch(tmp_path / "videos", *FILES)
    return {"root": tmp_path / "videos", "out": tmp_path / "out", "form": "pyslowfast"}


def write(path, *lines):
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


@pytest.mark.parametrize("separator", [" ", ",", "\t", ", "])
def test_paths_and_numbers(small, tmp_path, separator):
    lines = [
        f"{name}{separator}{label}" for name, label in zip(FILES[:3], (0, 10, -1), strict=True)
    ]
    lines[0] = f"{tmp_path / 'videos'}/{lines[0]}"
    report = convert.prepare(
        **small, lists=[write(tmp_path / "l.csv", *lines)], separator=separator
    )
    assert read_rows(next(iter(report.lists))) == [
        Row(FILES[0], "0000", "a b/x"),
        Row(FILES[1], "0010", "b/v_b_g01"),
        Row(FILES[2], "", "b/v_b_g01"),
    ]


def test_labels_keep_the_order_of_their_numbers(small, tmp_path):
    lines = [f"{name} {label}" for name, label in zip(FILES, (10, 2, 2, 11), strict=True)]
    convert.prepare(**small, lists=[write(tmp_path / "l.txt", *lines)])
    videos = read_list(small["out"] / "l.csv", root=small["root"])
    assert [video.label for video in videos.videos] == [1, 0, 0, 2]


def test_frame_folders_and_names(small, tmp_path):
    write(tmp_path / "map.txt", "jump", "run")
    (tmp_path / "map.json").write_text('{"\\"jump\\"": 0, "run": "1"}')
    touch(tmp_path / "videos", "frames/one/1.jpg", "frames/two/1.jpg")
    for form, numbers in (("mmaction2-frames", "12"), ("mmaction2-offset-frames", "3 12")):
        lines = [f"frames/one {numbers} 1", f"frames/two {numbers} 0"]
        for names in ("map.txt", "map.json"):
            options = small | {"form": form, "class_names": tmp_path / names}
            convert.prepare(**options, lists=[write(tmp_path / "l.txt", *lines)])
            rows = read_rows(small["out"] / "l.csv")
            assert [row[:2] for row in rows] == [("frames/one", "run"), ("frames/two", "jump")]


def test_classes_have_the_same_names_whatever_else_a_list_holds(small, tmp_path):
    for name, labels in {"train": (2, 10), "test": (2, 3)}.items():
        lines = [f"{video} {label}" for video, label in zip(FILES, labels, strict=False)]
        convert.prepare(**small, lists=[write(tmp_path / f"{name}.txt", *lines)])
    train, test = (read_rows(small["out"] / f"{name}.csv") for name in ("train", "test"))
    assert train[0].class_name == test[0].class_name == "0002"


def test_paths_of_another_spelling_and_lines_that_repeat(small, tmp_path):
    lines = [f"./c/../{FILES[3]} 1", f"{FILES[3]} 1", f"{tmp_path}/videos//b/../{FILES[0]} 0"]
    report = convert.prepare(**small, lists=[write(tmp_path / "l.txt", *lines)])
    videos = read_list(small["out"] / "l.csv", root=small["root"])
    assert [video.path for video in videos.videos] == [small["root"] / FILES[k] for k in (3, 0)]
    assert report.notes == ("1 lines that repeat a video were left out",)
    with pytest.raises(UserError, match=r"l gives c/z\.mp4 the classes 0001 and 0002"):
        convert.prepare(
            **small, lists=[write(tmp_path / "l.txt", f"{FILES[3]} 1", f"./{FILES[3]} 2")]
        )


def test_a_list_is_not_overwritten_by_what_it_becomes(small, tmp_path):
    path = write(tmp_path / "l.csv", f"{FILES[3]} 1")
    with pytest.raises(UserError, match=r"would overwrite .*l\.csv"):
        convert.prepare(**small | {"out": tmp_path}, lists=[path])
    assert path.read_text() == f"{FILES[3]} 1\n"


def test_lists_that_share(small, tmp_path):
    train = write(tmp_path / "train.txt", f"{FILES[1]} 0")
    test = write(tmp_path / "test.txt", f"{FILES[2]} 0")
    report = convert.prepare(**small, lists=[train, test])
    assert report.notes == ("test: 1 groups are in an earlier list too: b/v_b_g01",)
    write(test, f"{FILES[1]} 0")
    with pytest.raises(UserError, match="train and test: 1 videos are in both"):
        convert.prepare(**small, lists=[train, test])


@pytest.mark.parametrize(
    ("line", "options", "message"),
    [
        ("a/x.mp4", {}, "line 1: expected 'path class number', found 'a/x.mp4'"),
        ("a/x.mp4 1,2", {}, "expected 'path class number'"),
        ("/elsewhere/x.mp4 1", {}, "is not in the videos' folder"),
        ("c/absent.mp4 1", {}, r"lacks 1 videos \(0001 1\): c/absent.mp4"),
        ("c/z.mp4 1", {"form": "other"}, "unknown form 'other', not one of pyslowfast"),
        ("c/z.mp4 1", {"separator": ""}, "the separator is empty"),
        ("c/z.mp4 1", {"group_pattern": "("}, "malformed"),
        ("c/z.mp4 1", {"form": "mmaction2-frames"}, "expected 'path number class number'"),
        ("", {}, "contains no video"),
    ],
)
def test_faults(small, tmp_path, line, options, message):
    with pytest.raises(UserError, match=message):
        convert.prepare(**small | options, lists=[write(tmp_path / "l.txt", line)])
    assert not small["out"].exists()


def test_faults_of_class_names(small, tmp_path):
    lists = [write(tmp_path / "l.txt", f"{FILES[0]} 1")]
    with pytest.raises(UserError, match="has the class 1, which has no name"):
        convert.prepare(**small, lists=lists, class_names=write(tmp_path / "map.txt", "jump"))
    with pytest.raises(UserError, match=r"map\.json: expected"):
        convert.prepare(**small, lists=lists, class_names=write(tmp_path / "map.json", '["jump"]'))
    with pytest.raises(UserError, match="two of the lists have the same name"):
        convert.prepare(**small, lists=lists * 2)


@pytest.mark.parametrize("quote", ['"', "'"])
def test_quoted_paths(small, tmp_path, quote):
    lines = [
        f"{quote}{name}{quote} {label}" for name, label in zip(FILES, (0, 1, 1, 0), strict=True)
    ]
    report = convert.prepare(**small, lists=[write(tmp_path / "l.csv", *lines)])
    assert [row.video for row in read_rows(next(iter(report.lists)))] == list(FILES)
