import re

import pytest

from tests.data.prepare.test_datasets import touch
from vidcsl.data.lists import Row, read_rows
from vidcsl.data.prepare.lists import (
    GROUP_PATTERN,
    compile_pattern,
    group_of,
    index_videos,
    locate,
    shared_groups,
    without_repeats,
    write_lists,
)
from vidcsl.errors import UserError


def test_locate_prefers_the_exact_name(tmp_path):
    touch(tmp_path, "a/x.mp4", "a/x.avi", "a/y.webm")
    found = locate(["a/x.avi", "a/y.avi", "a/z.avi", "b/x.avi"], root=tmp_path)
    assert found == {"a/x.avi": "a/x.avi", "a/y.avi": "a/y.webm"}


def test_a_group_is_what_the_pattern_finds_or_the_video_itself():
    pattern = compile_pattern(GROUP_PATTERN)
    assert group_of("a/v_a_g01_c02.mp4", pattern) == "a/v_a_g01"
    assert group_of("a/other.mp4", pattern) == "a/other"
    for wrong in ("(", "g[0-9]+"):
        with pytest.raises(UserError, match=f"the group pattern {re.escape(repr(wrong))}"):
            compile_pattern(wrong)


def test_repeated_videos_and_shared_groups_are_noted():
    splits = {
        "train": [Row("a.mp4", "x", "g1"), Row("a.mp4", "y", "g1"), Row("b.mp4", "x", "")],
        "test": [Row("c.mp4", "x", "g1"), Row("d.mp4", "x", "")],
    }
    kept, notes = without_repeats(splits)
    assert kept["train"] == [Row("a.mp4", "y", "g1"), Row("b.mp4", "x", "")]
    assert notes == ["1 lines that repeat a video were left out"]
    assert shared_groups(kept) == ["test: 1 groups are in an earlier list too: g1"]


def test_a_list_that_became_empty_is_removed(tmp_path):
    rows = [Row("a.mp4", "x", "g")]
    write_lists({"train": rows, "test": rows}, tmp_path)
    lengths = write_lists({"train": rows, "test": []}, tmp_path)
    assert lengths == {tmp_path / "train.csv": 1, tmp_path / "test.csv": 0}
    assert read_rows(tmp_path / "train.csv") == rows
    assert not (tmp_path / "test.csv").exists()


def test_hidden_files_and_folders_are_no_videos(tmp_path):
    touch(tmp_path, "deep/er/x.mp4", "deep/._x.mp4", ".git/y.mp4", "__MACOSX/deep/z.mp4", ".w.mp4")
    assert index_videos(tmp_path) == {"x": "deep/er/x.mp4"}
