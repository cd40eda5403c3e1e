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
    assert {row.video for row in train + test} == {*names, "b/odd.MKV"}
    assert {row.group for row in train}.isdisjoint(row.group for row in test)
    assert report.groups == 17
    assert report.notes == (
        "left out: 1 videos in folders of the class folders",
        "left out, kinds that are not read: 2 .wmv",
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
        ({"group_pattern": "x"}, "needs a bracket"),
        ({"test_share": 1.0}, r"must be in \[0, 1\)"),
        ({"group_pattern": "(x)"}, "nothing can be held out of 2 videos in 1 groups"),
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
    assert "left out: 4 hidden files and files of hidden folders" in report.notes


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
