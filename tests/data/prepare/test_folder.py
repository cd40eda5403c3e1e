import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.data.prepare.test_datasets import touch
from vidcsl.data.lists import Row, read_list, read_rows
from vidcsl.data.prepare import folder
from vidcsl.errors import UserError


def rows_of(groups):
    return [
        Row(f"{class_name}/{group}_{clip}.mp4", class_name, f"{class_name}/{group}")
        for class_name, sizes in groups.items()
        for group, clips in enumerate(sizes)
        for clip in range(clips)
    ]


def class_groups(least, most):
    """Classes by name, of `least` to `most` groups each, as the numbers of their clips."""
    sizes = st.lists(st.integers(1, 4), min_size=least, max_size=most)
    return st.dictionaries(st.sampled_from("abc"), sizes, min_size=1)


@given(
    groups=class_groups(4, 12),
    share=st.floats(0.1, 0.5),
    seed=st.integers(0, 99),
)
def test_held_out_groups_come_near_the_share(groups, share, seed):
    rows = rows_of(groups)
    held_out = folder.hold_out(rows, share=share, seed=seed)
    assert held_out == folder.hold_out(rows[::-1], share=share, seed=seed)
    for class_name, sizes in groups.items():
        count = sum(row.group in held_out for row in rows if row.class_name == class_name)
        # Stopping early or overshooting is by half of the largest group at most.
        assert abs(count - share * sum(sizes)) <= max(sizes) / 2 + 1e-9


@given(
    groups=class_groups(1, 4),
    share=st.floats(0.1, 0.99),
    seed=st.integers(0, 99),
)
def test_every_class_keeps_a_video_to_train_on(groups, share, seed):
    rows = rows_of(groups)
    held_out = folder.hold_out(rows, share=share, seed=seed)
    assert {row.class_name for row in rows if row.group not in held_out} == set(groups)


def test_another_seed_holds_out_others():
    rows = rows_of({"a": [1] * 40})
    assert folder.hold_out(rows, share=0.3, seed=0) != folder.hold_out(rows, share=0.3, seed=1)


def test_folder_keeps_groups_together(tmp_path):
    names = [f"{c}/clip_g{g:02d}_c{k:02d}.mp4" for c in "ab" for g in range(8) for k in range(3)]
    touch(tmp_path, *names, "a/note.txt", "b/deep/x.mp4", "b/odd.MKV", "a/old.wmv", "older.WMV")
    report = folder.prepare_folder(root=tmp_path, out=tmp_path / "lists")
    train, test = (read_rows(path) for path in report.lists)
    assert {row.video for row in train + test} == {*names, "b/odd.MKV", "b/deep/x.mp4"}
    assert {row.group for row in train}.isdisjoint(row.group for row in test)
    assert report.groups == 18
    assert report.classes == ("a", "b", "b/deep")
    assert report.notes == (
        "left out, unsupported formats: 2 .wmv",
        "no test video of b/deep: too few groups",
    )
    assert [sum(row.class_name == name for row in test) for name in "ab"] == [6, 6]


def test_folder_without_classes_is_unlabelled(tmp_path):
    touch(tmp_path, *(f"scene{i // 2}-take{i}.webm" for i in range(8)))
    options = {"root": tmp_path, "out": tmp_path / "lists", "group_pattern": r"(scene\d+)"}
    report = folder.prepare_folder(**options, test_share=0)
    assert list(report.lists) == [tmp_path / "lists" / "train.csv"]
    videos = read_list(tmp_path / "lists" / "train.csv", root=tmp_path)
    assert {video.label for video in videos.videos} == {-1}
    assert [video.group for video in videos.videos] == [0, 0, 1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"group_pattern": "("}, "malformed"),
        ({"group_pattern": "x"}, "needs a capture group"),
        ({"test_share": 1.0}, r"must be in \[0, 1\)"),
        ({"group_pattern": "(x)"}, "cannot hold out any of 2 videos in 1 groups"),
        ({"classes": ["b"]}, "no class b: see a"),
    ],
)
def test_faults_of_a_folder(tmp_path, options, message):
    touch(tmp_path, "a/x1.mp4", "a/x2.mp4")
    with pytest.raises(UserError, match=message):
        folder.prepare_folder(root=tmp_path, out=tmp_path / "lists", **options)


def test_an_empty_folder(tmp_path):
    with pytest.raises(UserError, match=r"no video \(\.avi, "):
        folder.prepare_folder(root=tmp_path, out=tmp_path)


def test_names_that_a_list_would_not_give_back(tmp_path):
    touch(tmp_path / "blank", " a/x.mp4")
    with pytest.raises(UserError, match="starts or ends with a blank"):
        folder.prepare_folder(root=tmp_path / "blank", out=tmp_path / "lists", test_share=0)
    touch(tmp_path / "bytes", "a/x\udce9.mp4")  # as Python names a byte that is no UTF-8
    with pytest.raises(UserError, match=r"'a/x\\udce9\.mp4' is not a name in UTF-8"):
        folder.prepare_folder(root=tmp_path / "bytes", out=tmp_path / "lists", test_share=0)
    assert not list((tmp_path / "lists").glob("*"))


def test_what_systems_leave_behind_is_no_class_and_no_video(tmp_path):
    names = [f"{c}/{k}.mp4" for c in "ab" for k in range(4)]
    junk = (".git/x.mp4", "__MACOSX/y.mp4", "__MACOSX/a/._0.mp4", "a/._0.mp4", ".z.mp4")
    touch(tmp_path, *names, *junk)
    report = folder.prepare_folder(root=tmp_path, out=tmp_path / "lists")
    assert report.classes == ("a", "b")
    assert {row.video for path in report.lists for row in read_rows(path)} == {*names}
    assert "left out: 5 hidden files and files of hidden folders" in report.notes


def test_broken_links_are_counted(tmp_path):
    touch(tmp_path, *(f"a/{k}.mp4" for k in range(4)))
    for k in range(3):
        (tmp_path / f"a/lost{k}.mp4").symlink_to("nowhere.mp4")
    report = folder.prepare_folder(root=tmp_path, out=tmp_path / "lists")
    assert report.videos == 4
    assert "left out: 3 links to files that are not there, first a/lost0.mp4" in report.notes


def test_links_to_one_file_are_one_video(tmp_path):
    """Otherwise one would land in training and another in test."""
    touch(tmp_path, *(f"a/{k}.mp4" for k in range(8)), *(f"b/{k}.mp4" for k in range(8)))
    for k in range(8):
        (tmp_path / f"a/link{k}.mp4").symlink_to(f"{k}.mp4")
        (tmp_path / f"b/hard{k}.mp4").hardlink_to(tmp_path / f"b/{k}.mp4")
    report = folder.prepare_folder(root=tmp_path, out=tmp_path / "lists", test_share=0.5)
    assert report.videos == 16
    note = "left out: 16 further links to videos of the list, first a/link0.mp4 to a/0.mp4"
    assert note in report.notes


def test_videos_may_be_links_and_class_folders_too(tmp_path):
    touch(tmp_path / "store", *(f"x/{k}.mp4" for k in range(4)), "other.mp4")
    (tmp_path / "root/b").mkdir(parents=True)
    (tmp_path / "root/a").symlink_to(tmp_path / "store/x")
    (tmp_path / "root/b/other.mp4").symlink_to(tmp_path / "store/other.mp4")
    report = folder.prepare_folder(root=tmp_path / "root", out=tmp_path / "lists")
    assert report.videos == 5
    assert report.classes == ("a", "b")


# Folders as people have them ----------------------------------------------------------------------


def prepared(root, **options):
    """Videos and classes of each list, and the notes."""
    report = folder.prepare_folder(root=root, out=root / "lists", **options)
    lists = {
        path.stem: {row.video: row.class_name for row in read_rows(path)} for path in report.lists
    }
    return lists, report.notes


@pytest.mark.parametrize("other", ["val", "Validation", "test"])
def test_folders_of_a_split_are_no_classes(tmp_path, other):
    touch(
        tmp_path, *(f"{half}/{c}/{k}.mp4" for half in ("train", other) for c in "ab" for k in "12")
    )
    lists, notes = prepared(tmp_path)
    assert lists["train"] == {f"train/{c}/{k}.mp4": c for c in "ab" for k in "12"}
    assert lists["test"] == {f"{other}/{c}/{k}.mp4": c for c in "ab" for k in "12"}
    assert notes == ()


def test_a_split_in_three_and_classes_that_training_lacks(tmp_path):
    touch(tmp_path, "train/a/1.mp4", "train/b/2.mp4", "val/a/3.mp4", "test/a/4.mp4", "test/c/5.mp4")
    touch(tmp_path, "extra/6.mp4")
    lists, notes = prepared(tmp_path)
    assert lists["test"] == {"test/a/4.mp4": "a"}
    assert lists["val"] == {"val/a/3.mp4": "a"}
    assert notes == (
        "left out, neither train nor test: extra",
        "left out of test: 1 videos of no class in training",
        "warning: most of the 2 classes have one video; --class-level 1 takes the first folder of "
        "a path as its class",
    )


def test_a_folder_called_train_alone_is_the_root(tmp_path):
    touch(tmp_path, *(f"train/{c}/{k}.mp4" for c in "ab" for k in range(4)))
    lists, _ = prepared(tmp_path)
    assert set(lists["train"].values()) == set(lists["test"].values()) == {"a", "b"}


def test_roots_of_training_and_test_apart(tmp_path):
    touch(tmp_path / "here", *(f"{c}/{k}.mp4" for c in "ab" for k in "12"))
    touch(tmp_path / "there", "a/1.mp4", "b/2.mp4")
    report = folder.prepare_folder(
        root=tmp_path / "here", test_root=tmp_path / "there", out=tmp_path / "lists"
    )
    train, test = (read_list(path, root=tmp_path) for path in report.lists)
    assert [video.path.exists() for video in (*train.videos, *test.videos)] == [True] * 6
    assert train.classes == ("a", "b")
    assert report.notes == (f"paths are relative to {tmp_path}: give it as DATA.ROOT",)


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_flat_folder_with_a_table(tmp_path, separator):
    touch(tmp_path, *(f"{k}.mp4" for k in range(9)))
    lines = [f"{k}{'.mp4' if k % 2 else ''},{'ab'[k % 2]}" for k in range(8)] + ["99.mp4,a"]
    table = tmp_path / "labels.csv"
    table.write_text("\n".join(["Filename,Label", *lines]).replace(",", separator) + "\n")
    lists, notes = prepared(tmp_path, labels=table)
    assert lists["train"] | lists["test"] == {f"{k}.mp4": "ab"[k % 2] for k in range(8)}
    assert notes == (
        "labels.csv names 1 videos that are not there: 99.mp4",
        "left out, not in labels.csv: 1 videos: 8.mp4",
    )


def test_a_table_may_name_splits_and_groups(tmp_path):
    touch(tmp_path, "1.mp4", "2.mp4", "3.mp4")
    table = tmp_path / "t.csv"
    table.write_text("video,class,split,group\n1.mp4,a,train,g\n2.mp4,b,train,g\n3.mp4,a,Test,h\n")
    report = folder.prepare_folder(root=tmp_path, out=tmp_path / "lists", labels=table)
    rows = {path.stem: read_rows(path) for path in report.lists}
    assert rows == {
        "train": [Row("1.mp4", "a", "g"), Row("2.mp4", "b", "g")],
        "test": [Row("3.mp4", "a", "h")],
    }


def test_faults_of_a_table(tmp_path):
    touch(tmp_path, "a/1.mp4", "b/1.mp4")
    for text, message in (
        ("x,class\n1,2\n", "no column is called video or videos or file"),
        ("video,class\n", "no line beside its header"),
        ("video,class\n1.mp4,a\n", "line 2: 2 videos are called 1.mp4"),
        ("video,class\n7.mp4,a\n", "names no video that is in"),
        ("video,class\n7.mp4\n", "line 2: too few columns"),
    ):
        (tmp_path / "t.csv").write_text(text)
        with pytest.raises(UserError, match=message):
            prepared(tmp_path, labels=tmp_path / "t.csv")


def test_classes_within_classes_and_the_level_that_counts(tmp_path):
    touch(
        tmp_path, *(f"{sport}/{stroke}/{k}.gif" for sport in "xy" for stroke in "pq" for k in "12")
    )
    lists, _ = prepared(tmp_path, test_share=0.5)
    assert set(lists["train"].values()) == {"x/p", "x/q", "y/p", "y/q"}
    lists, _ = prepared(tmp_path, class_level=1)
    assert set(lists["train"].values()) == {"x", "y"}
    lists, _ = prepared(tmp_path, class_level=2)
    assert set(lists["train"].values()) == {"p", "q"}


def test_an_unlabelled_folder_gives_one_list_that_train_accepts(tmp_path):
    touch(tmp_path, *(f"{k}.mp4" for k in range(8)), "labels.csv")
    lists, notes = prepared(tmp_path)
    assert list(lists) == ["train"]
    assert notes == (
        "no classes: train on train.csv with DATA.TEST_LIST ''",
        "a table of their classes is given by --labels TABLE.csv",
    )


def test_one_class_and_many_videos_left_out_are_warned_of(tmp_path):
    touch(tmp_path / "one", *(f"a/{k}.mp4" for k in range(8)))
    assert "warning: one class only, 'a'" in prepared(tmp_path / "one")[1][0]
    touch(
        tmp_path / "most",
        "a/1.mp4",
        "a/2.mp4",
        "b/1.mp4",
        "b/2.mp4",
        *(f"{k}.wmv" for k in range(5)),
    )
    assert prepared(tmp_path / "most", test_share=0.5)[1][0] == (
        "warning: most videos are left out, unsupported formats: 5 .wmv"
    )
    touch(tmp_path / "file", "x.mp4")
    with pytest.raises(UserError, match="is a file, not a folder"):
        prepared(tmp_path / "file" / "x.mp4")
