import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vidcsl.errors import UserError
from vidcsl.robustness.attacked_clips import find_sets, read_clip, read_set, write_clip, write_set


@settings(max_examples=20)
@given(st.integers(1, 5), st.integers(4, 19), st.integers(4, 23), st.integers(0, 99))
def test_8_bit_clips_are_videos_that_come_back_exactly(
    tmp_path_factory, frames, height, width, seed
):
    generator = torch.Generator().manual_seed(seed)
    shape = (3, frames, height, width)
    clip = torch.randint(256, shape, generator=generator).float() / 255
    path = write_clip(tmp_path_factory.mktemp("clip") / "000007.x", clip)
    assert path.name == "000007.x.mkv"
    assert torch.equal(read_clip(path), clip)


def test_any_other_clip_comes_back_exactly_too(tmp_path):
    clip = torch.rand(3, 4, 5, 6)
    path = write_clip(tmp_path / "one", clip)
    assert path.name == "one.safetensors"
    assert torch.equal(read_clip(path), clip)
    assert [each.name for each in tmp_path.iterdir()] == ["one.safetensors"]  # nothing half-written


def test_sets_are_found_and_read(tmp_path):
    clips = [{"file": "000000.mkv"}]
    described = {"attack": "a", "clean": "../clean", "model": {}, "classes": ["x"], "look": None}
    described["clips"] = clips
    for name in ("b/2", "a", "b/1"):
        write_set(tmp_path / name, described)
    places = [tmp_path / name for name in ("a", "b/1", "b/2")]
    assert find_sets([tmp_path]) == places
    assert find_sets([tmp_path / "b", tmp_path]) == [*places[1:], places[0]]
    assert read_set(places[0]) == described


def test_mistakes_are_one_line(tmp_path):
    with pytest.raises(UserError, match="vidcsl attack"):
        find_sets([tmp_path])
    keys = ("attack", "clean", "model", "classes", "look")
    write_set(tmp_path / "empty", {**dict.fromkeys(keys), "clips": []})
    with pytest.raises(UserError, match="contains no clips"):
        read_set(tmp_path / "empty")
    (tmp_path / "set.json").write_text(json.dumps({"attack": "a"}))
    with pytest.raises(UserError, match="does not describe"):
        read_set(tmp_path)
    (tmp_path / "set.json").write_text("{")
    with pytest.raises(UserError, match="cannot read"):
        read_set(tmp_path)
    for name in ("gone.mkv", "gone.safetensors"):
        with pytest.raises(UserError, match="cannot read attacked clip"):
            read_clip(tmp_path / name)
    for suffix, clip in (("mkv", torch.ones(3, 2, 8, 8)), ("safetensors", torch.rand(3, 2, 8, 8))):
        path = write_clip(tmp_path / "cut", clip)
        path.write_bytes(path.read_bytes()[:40])
        with pytest.raises(UserError, match=f"cut.{suffix}"):
            read_clip(path)
