import multiprocessing
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import fsspec
import pytest
import torch

from tests.data.made_videos import write_numbered
from vidcsl.data import sampling, shards
from vidcsl.data.dataset import ClipDataset
from vidcsl.data.lists import Row, Video, check_files, read_list, write_list
from vidcsl.data.loader import build_loader
from vidcsl.data.prepare.shard import shard
from vidcsl.data.shards import Span
from vidcsl.errors import PassingError, UserError, VideoError

VIDEOS = 9


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """Videos of two classes, as files and in several shards; one of them is damaged."""
    base = tmp_path_factory.mktemp("packed")
    root = base / "videos"
    root.mkdir()
    rows = [Row(f"{k}.mp4", "ab"[k % 2], f"g{k // 2}") for k in range(VIDEOS)]
    for k, row in enumerate(rows):
        write_numbered(root / row.video, frames=4 + k, options={"g": "4"})
    (root / "5.mp4").write_bytes((root / "5.mp4").read_bytes()[:900])
    write_list(base / "train.csv", rows)
    lists = [base / "train.csv"]
    report = shard(root=root, lists=lists, out=base / "shards", shard_bytes=9000, workers=1)
    assert len(report.shards) > 2
    return base


def sampler(num_frames, fps, rng):
    clips = sampling.random_clips(num_frames, frames=3, stride=2, clips=2, rng=rng)
    return sampling.fit_length(clips, num_frames, policy="loop")


def loader(path, root, *, workers=0, cache=None):
    videos = read_list(path, root=root)
    check_files(videos.videos)
    dataset = ClipDataset(videos=videos, sampler=sampler, short_side=32, seed=1, cache=cache)
    return build_loader(dataset, batch_size=4, shuffle=True, drop_last=False, workers=workers)


def in_memory(base):
    """The folder of shards, copied into fsspec's memory."""
    memory = fsspec.filesystem("memory")
    for path in (base / "shards").glob("train*"):
        memory.pipe_file(f"/bucket/{path.name}", path.read_bytes())
    return "memory://bucket/"


@pytest.mark.parametrize("where", ["path", "file", "memory"])
@pytest.mark.parametrize("workers", [0, 2])
def test_the_bytes_of_each_step_are_those_from_files(packed, where, workers):
    places = {
        "path": lambda: packed / "shards",
        "file": lambda: f"file://{packed}/shards",
        "memory": lambda: in_memory(packed),
    }
    if where == "memory" and workers and multiprocessing.get_start_method() != "fork":
        pytest.skip("workers that are not forked do not see this process's memory")
    root = places[where]()
    files = loader(packed / "train.csv", packed / "videos")
    packs = loader(f"{str(root).rstrip('/')}/train.csv", root, workers=workers)
    for epoch, start in ((0, 0), (1, 0), (1, 2)):
        pairs = list(zip(files.epoch(epoch, start), packs.epoch(epoch, start), strict=True))
        assert len(pairs) == 3 - start
        for one, other in pairs:
            for name in ("frames", "sizes", "labels", "groups", "indices", "frame_indices"):
                assert torch.equal(getattr(one, name), getattr(other, name)), name
            assert [p.rpartition("/")[2] for p in one.damaged] == [
                p.rpartition("/")[2] for p in other.damaged
            ]
        if start == 0:
            assert sum(len(one.damaged) for one, _ in pairs) > 0


def test_cached_frames_are_those_of_the_shard(packed, tmp_path):
    plain = loader(packed / "shards" / "train.csv", packed / "shards")
    for _ in range(2):  # the second time from the cache
        cached = loader(packed / "shards" / "train.csv", packed / "shards", cache=tmp_path)
        for one, other in zip(plain.epoch(0), cached.epoch(0), strict=True):
            assert torch.equal(one.frames, other.frames)


def test_a_slow_store_does_not_damage_a_video(packed, monkeypatch):
    read = Span.read
    monkeypatch.setattr(Span, "read", lambda span: (time.sleep(0.7), read(span))[1])
    videos = read_list(packed / "shards" / "train.csv", root=packed / "shards")
    dataset = ClipDataset(videos=videos, sampler=sampler, short_side=32, seed=1, timeout=0.6)
    assert dataset[0, 0].damaged == ()


def spans_of(packed):
    videos = read_list(packed / "shards" / "train.csv", root=packed / "shards").videos
    return [video.span for video in videos]


def test_a_shard_that_is_not_the_one_of_the_list(packed):
    span = spans_of(packed)[0]
    for wrong in (replace(span, offset=span.offset + 1), replace(span, size=10**9)):
        with pytest.raises(VideoError, match="not the bytes that were packed"):
            wrong.read()
    with pytest.raises(UserError, match=r"has \d+ bytes, its list needs"):
        check_files([video_of(replace(span, size=10**9))])
    with pytest.raises(UserError, match=r"cannot read .*absent"):
        check_files([video_of(replace(span, shard=f"{span.shard}.absent"))])


def video_of(span):
    return Video(Path("x.mp4"), span=span)


class Flaky:
    """A file system that fails some times."""

    def __init__(self, failures):
        self.failures = failures

    def cat_file(self, path, start, end):
        if self.failures:
            raise self.failures.pop()
        return b"abc"


def test_a_busy_store_is_asked_again_and_a_broken_one_ends_the_run(monkeypatch):
    flaky = Flaky([ConnectionError("busy"), TimeoutError("slow")])
    slept = []
    monkeypatch.setattr(fsspec, "url_to_fs", lambda url: (flaky, url))
    monkeypatch.setattr(shards.time, "sleep", slept.append)
    assert Span("s3://b/x.tar", 0, 3, 891568578).read() == b"abc"
    assert slept == list(shards.PAUSES[:2])
    flaky.failures = [ConnectionError("gone")] * 9
    with pytest.raises(PassingError, match=r"cannot read s3://b/x\.tar: gone"):
        Span("s3://b/x.tar", 0, 3, 891568578).read()  # no VideoError, which would be replaced
    flaky.failures, slept[:] = [FileNotFoundError("no such object")], []
    with pytest.raises(UserError, match="no such object") as caught:
        Span("s3://b/x.tar", 0, 3, 891568578).read()
    assert not isinstance(caught.value, PassingError | VideoError)
    assert not slept


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("video,class,group,shard,offset,size\n", "line 1: the header must be .*size,crc32, not"),
        ("video,class,group,shard,offset,size,crc32\na,,,s.tar,0,x,1\n", "line 2: expected shard"),
        ("video,class,group,shard,offset,size,crc32\na,,,,0,1,1\n", "line 2: expected shard"),
        ("video,class,group,shard,offset,size,crc32\na,,,s.tar,0,1\n", "line 2: expected video"),
    ],
)
def test_faulty_lists_are_refused(tmp_path, text, message):
    (tmp_path / "l.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        read_list(tmp_path / "l.csv", root=tmp_path)


def test_faulty_places_are_refused(packed):
    read = partial(read_list, root="memory://bucket")
    with pytest.raises(UserError, match=r"the list memory://bucket/absent\.csv does not exist"):
        read("memory://bucket/absent.csv")
    with pytest.raises(UserError, match=r"cannot read nosuch://x\.csv: Protocol not known: nosuch"):
        read("nosuch://x.csv")
    with pytest.raises(UserError, match="folder memory://bucket does not exist"):
        read(packed / "train.csv")  # files, not shards
