"""Names of files as people have them: none is taken for a protocol, a home is found everywhere."""

import zlib
from pathlib import Path

import pytest

from tests.data.made_videos import numbers, write_numbered
from tests.data.readers.installed import decoders
from vidcsl.cli import main
from vidcsl.data.lists import read_list, read_rows, write_list
from vidcsl.data.prepare.scan import examine
from vidcsl.data.prepare.transcode import Settings, transcode
from vidcsl.data.readers import open_reader
from vidcsl.data.shards import Span

ODD = (
    "12:30:00.mp4",
    "file:1.mp4",
    "concat:a|b.mp4",
    "http:__x.mp4",
    "a::b.mp4",
    "-.mp4",
    "%03d.mp4",
)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder that is the root "."."""
    write_numbered(tmp_path / "plain.mp4", frames=6)
    for name in ODD:
        (tmp_path / name).write_bytes((tmp_path / "plain.mp4").read_bytes())
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("backend", decoders())
def test_names_that_look_like_protocols_are_files(here, backend):
    for name in ODD:
        with open_reader(name, backend=backend) as reader:
            assert numbers(reader.read(range(6))) == list(range(6)), name


def test_such_names_can_be_prepared_and_packed(here):
    write_list("all.csv", [(name, "", "") for name in ODD])
    videos = read_list("all.csv", root=".")
    for video in videos.videos:
        with open_reader(video.source()) as reader:
            assert reader.num_frames == 6
        assert examine(video.path, "auto")["frames"] == 6
    done = transcode(
        root=Path(),
        lists=[Path("all.csv")],
        out_root=Path("c:opy"),
        out=Path("out"),
        settings=Settings(short_side=32),
        workers=1,
    )
    assert {copy["frames"] for copy in done.copies.values()} == {6}
    data = (here / "plain.mp4").read_bytes()
    for name in ("12:30.tar", "file:1.tar", "a::b.tar"):
        (here / name).write_bytes(data)
        assert Span(name, 0, len(data), zlib.crc32(data)).read() == data


def test_home_in_arguments_of_commands(here, monkeypatch):
    monkeypatch.setenv("HOME", str(here))
    (here / "clips" / "walk").mkdir(parents=True)
    for k in range(4):
        write_numbered(here / f"clips/walk/{k}.mp4", frames=4 + k)
    assert main(["prepare", "folder", "--root=~/clips", "--out=~/lists"]) == 0
    assert not (here / "~").exists()
    assert len(read_rows(here / "lists/train.csv")) == 3
