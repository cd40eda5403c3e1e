import csv
import itertools
import multiprocessing
import pickle
import shutil
import tracemalloc
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.data.list_child import touch
from vidcsl.data.lists import (
    Row,
    Video,
    check_files,
    read_list,
    read_rows,
    shared,
    write_list,
)
from vidcsl.data.shards import Span
from vidcsl.errors import UserError

OFFICIAL = Path(__file__).parents[3] / "shared" / "data" / "official_splits" / "ucf101_splits"


def write(path, text):
    path.write_bytes(text.encode())
    return path


def test_labels_follow_sorted_names_and_groups_their_strings(tmp_path):
    path = write(
        tmp_path / "a.csv",
        "video,class,group\nb/1.mp4,walk,z\na/1.mp4,jump,y\na/2.mp4,jump,z\nc.mp4,,\n",
    )
    videos = read_list(path, root=tmp_path)
    assert videos.classes == ("jump", "walk")
    assert [video.label for video in videos.videos] == [1, 0, 0, -1]
    assert videos.videos[0].group == videos.videos[2].group != videos.videos[1].group
    assert videos.videos[3] == Video(tmp_path / "c.mp4", -1, -1)
    assert len(videos) == 4
    assert videos.source == str(path)


def test_training_classes_set_the_order_and_absent_ones_are_reported(tmp_path):
    path = write(tmp_path / "a.csv", "video,class,group\na.mp4,jump,\n")
    with pytest.warns(UserWarning, match="no video of 1 of 2 classes: walk"):
        videos = read_list(path, root=tmp_path, classes=("walk", "jump"))
    assert videos.classes == ("walk", "jump")
    assert videos.videos[0].label == 1


def test_an_unlabelled_list_lacks_no_class(tmp_path):
    path = write(tmp_path / "a.csv", "video,class,group\na.mp4,,\n")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_list(path, root=tmp_path, classes=("walk",)).videos[0].label == -1


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_the_published_ucf101_form(tmp_path, newline):
    lines = [
        "HandstandPushups/v_HandStandPushups_g01_c01.avi 37",
        "HandstandPushups/v_HandStandPushups_g01_c02.avi",
        "",
        "YoYo/odd.avi 101",
        "",
    ]
    path = write(tmp_path / "trainlist01.txt", newline.join(lines))
    assert read_rows(path) == [
        Row(lines[0].split()[0], "HandstandPushups", "v_HandStandPushups_g01"),
        Row(lines[1], "HandstandPushups", "v_HandStandPushups_g01"),
        Row("YoYo/odd.avi", "YoYo", ""),
    ]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "", "contains no video"),
        ("a.csv", "video,class,group\n", "contains no video"),
        ("a.csv", "file,class,group\na.mp4,x,y\n", "line 1: the header must be video,class,group"),
        ("a.csv", "video,class,group\na.mp4,x,y\nb.mp4,x\n", "line 3: expected video,class,group"),
        ("a.csv", "video,class,group\na.mp4,x,y,z\n", "line 2: expected"),
        ("a.csv", "video,class,group\n,x,y\n", "line 2: expected"),
        ("a.csv", "video,class,group\na.mp4,x,\nb.mp4,,\n./a.mp4,x,\n", "line 4: .*line 2"),
        ("a.csv", "video,class,group\na.mp4,other,\n", "line 2: class 'other' is not one of the 1"),
        ("a.txt", "x/a.avi 1\nx/b.avi one\n", "line 2: expected 'Class/video.avi"),
        ("a.txt", "a.avi 1\n", "line 1: expected"),
        ("a.txt", "x/a.avi 1\n\nx/a.avi 1\n", "line 3: x/a.avi is already in line 1"),
    ],
)
def test_faults_name_the_file_and_the_line(tmp_path, name, text, message):
    path = write(tmp_path / name, text)
    with pytest.raises(UserError, match=message) as caught:
        read_list(path, root=tmp_path, classes=("x",))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_list_missing_root_and_binary_list(tmp_path):
    with pytest.raises(UserError, match=r"absent\.csv does not exist"):
        read_list(tmp_path / "absent.csv", root=tmp_path)
    path = write(tmp_path / "a.csv", "video,class,group\na.mp4,,\n")
    with pytest.raises(UserError, match=r"folder .*nowhere does not exist"):
        read_list(path, root=tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file is a file, not a folder"):
        read_list(path, root=tmp_path / "file")
    path.write_bytes(b"\xff\xfe\x00video")
    with pytest.raises(UserError, match="not UTF-8"):
        read_list(path, root=tmp_path)


def test_a_spreadsheets_byte_order_mark_is_taken(tmp_path):
    path = write(tmp_path / "a.csv", "\ufeffvideo,class,group\r\na.mp4,x,\r\n")
    assert read_rows(path) == [Row("a.mp4", "x", "")]


field = st.text(st.characters(exclude_categories=("C", "Z"), codec="utf-8"), max_size=8)


@given(st.lists(st.tuples(field, field, field), min_size=1, max_size=8))
def test_rows_survive_writing_and_reading(tmp_path_factory, fields):
    rows = [Row(f"v{i}{video}", name, group) for i, (video, name, group) in enumerate(fields)]
    path = tmp_path_factory.mktemp("lists") / "a.csv"
    write_list(path, rows)
    assert read_rows(path) == rows


def test_a_failed_write_leaves_the_old_list(tmp_path):
    path = tmp_path / "deep" / "a.csv"
    write_list(path, [("a.mp4", "x", "g")])

    def broken():
        yield ("b.mp4", "x", "g")
        raise csv.Error("stop")

    with pytest.raises(csv.Error):
        write_list(path, broken())
    assert read_rows(path) == [Row("a.mp4", "x", "g")]
    assert [file.name for file in path.parent.iterdir()] == ["a.csv"]


def test_missing_files_are_counted_and_the_first_is_named(tmp_path):
    (tmp_path / "a.avi").touch()
    (tmp_path / "b.mp4").touch()
    videos = [Video(tmp_path / name) for name in ("a.avi", "b.avi", "c.avi")]
    check_files(videos[:1])
    with pytest.raises(UserError, match=r"2 of 3 .*b\.avi \(b\.mp4 is there"):
        check_files(videos)
    with pytest.raises(UserError, match=r"1 of 1 videos are missing, first .*c\.avi$"):
        check_files(videos[2:])


@pytest.mark.skipif(not OFFICIAL.is_dir(), reason="the official split lists are not here")
def test_the_official_split(tmp_path):
    train = read_list(OFFICIAL / "trainlist01.txt", root=tmp_path)
    test = read_list(OFFICIAL / "testlist01.txt", root=tmp_path, classes=train.classes)
    assert (len(train), len(test), len(train.classes)) == (9537, 3783, 101)
    assert len({video.group for video in train.videos}) == 101 * 18
    assert min(video.group for video in train.videos) == 0


# What two lists share, and whether two are the same -----------------------------------------------


def test_a_digest_is_of_what_a_list_says_and_not_of_how(tmp_path):
    rows = [("a/1.mp4", "x", "g"), ("b.mp4", "", ""), ("c d.mp4", "x", "")]
    plain = write(tmp_path / "plain.csv", "video,class,group\na/1.mp4,x,g\nb.mp4,,\nc d.mp4,x,\n")
    quoted = write(
        tmp_path / "other.csv",
        'video, class, group\r\n"./a/1.mp4", x,g\r\n\r\nb.mp4,,\r\n"c d.mp4",x,\r\n',
    )
    digest = read_list(plain, root=tmp_path).digest
    assert digest == read_list(quoted, root=tmp_path).digest
    for place, column in itertools.product(range(3), range(3)):
        changed = [list(row) for row in rows]
        changed[place][column] += "z"
        write_list(tmp_path / "changed.csv", changed)
        assert read_list(tmp_path / "changed.csv", root=tmp_path).digest != digest
    write_list(tmp_path / "changed.csv", rows[::-1])
    assert read_list(tmp_path / "changed.csv", root=tmp_path).digest != digest


def test_one_file_under_two_names_is_shared(tmp_path):
    for name in ("a", "b", "c", "d", "e"):
        (tmp_path / f"{name}.mp4").write_bytes(name.encode() * 400_000)
    (tmp_path / "link.mp4").symlink_to("a.mp4")
    (tmp_path / "hard.mp4").hardlink_to(tmp_path / "b.mp4")
    shutil.copy(tmp_path / "c.mp4", tmp_path / "copy.mp4")
    write_list(tmp_path / "train.csv", [(f"{k}.mp4", "x", f"g{k}") for k in "abcd"])
    names = ("link", "hard", "copy", "d", "e")
    write_list(tmp_path / "test.csv", [(f"{k}.mp4", "x", f"h{k}") for k in names])
    found = shared(*(read_list(tmp_path / f"{k}.csv", root=tmp_path) for k in ("train", "test")))
    assert found.videos == tuple(str(tmp_path / f"{k}.mp4") for k in names[:-1])
    assert found.groups == ()


# Long lists ---------------------------------------------------------------------------------------


def test_a_long_list_takes_little_beside_its_paths(tmp_path):
    """Columns of numbers, which worker processes share, and no object for each video."""
    count = 20_000
    rows = [
        (f"class{k % 40}/{k:08d}.mp4", f"class{k % 40}", f"source{k // 4}") for k in range(count)
    ]
    write_list(tmp_path / "long.csv", rows)
    tracemalloc.start()
    videos = read_list(tmp_path / "long.csv", root=tmp_path)
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    paths = sum(len(video) for video, _, _ in rows)
    assert held < paths + 100 * count
    assert len(pickle.dumps(videos)) < paths + 60 * count
    assert videos.videos[12_345].path == tmp_path / rows[12_345][0]


def test_videos_in_columns_are_a_sequence(tmp_path):
    rows = [Row(f"d/é {k}.mp4", "ab"[k % 2], f"g{k // 2}") for k in range(7)]
    spans = [Span(f"s{k % 2}.tar", 2**33 + k, k, 2**32 - 1 - k) for k in range(7)]
    for name, packed in (("plain", False), ("packed", True)):
        given = [
            row._replace(span=span if packed else None)
            for row, span in zip(rows, spans, strict=True)
        ]
        write_list(tmp_path / f"{name}.csv", given)
        found = read_list(tmp_path / f"{name}.csv", root=tmp_path)
        for videos in (found.videos, pickle.loads(pickle.dumps(found)).videos):
            each = list(videos)
            assert len(videos) == len(each) == 7
            assert videos[-1] == each[6] == videos[np.int64(6)]
            assert [*videos[1:4]] == each[1:4]
            assert [video.path for video in each] == [tmp_path / row.video for row in rows]
            assert [video.label for video in each] == [k % 2 for k in range(7)]
            assert [found.groups[video.group] for video in each] == [row.group for row in rows]
            if packed:
                expected = [replace(s, shard=f"{tmp_path}/{s.shard}") for s in spans]
                assert [video.span for video in each] == expected
            with pytest.raises(IndexError):
                videos[7]
        chosen = found.chosen([5, 0, 5])
        assert [*chosen.videos] == [each[5], each[0], each[5]]
        turned = found.with_classes(("b", "a"))
        assert [video.label for video in turned.videos] == [1 - k % 2 for k in range(7)]


@pytest.mark.skipif(
    not Path("/proc/self/smaps_rollup").exists(), reason="Linux says what is shared"
)
@pytest.mark.parametrize("start", ["fork", "spawn", "forkserver"])
def test_processes_share_a_list_however_they_are_started(tmp_path, start):
    names = [f"{k:03d}" + "x" * 100_000 for k in range(200)]  # long names are quickly many bytes
    write_list(tmp_path / "long.csv", [(name, "ab"[k % 2], "") for k, name in enumerate(names)])
    videos = read_list(tmp_path / "long.csv", root=tmp_path)
    processes = multiprocessing.get_context(start)
    results = processes.SimpleQueue()
    for _ in range(2):  # the second gets the handle that the first has got
        child = processes.Process(target=touch, args=(videos, results, start))
        child.start()
        length, private = results.get()
        child.join()
        assert length == sum(len(f"{tmp_path}/{name}") for name in names) + 100
        assert private < 10e6  # of 20e6
    assert videos.videos[-1].path == tmp_path / names[-1]
