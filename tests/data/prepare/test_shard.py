import hashlib
import json
import tarfile

import pytest

from vidcsl.data.lists import Row, read_list, read_rows, write_list
from vidcsl.data.prepare.shard import shard
from vidcsl.data.prepare.transcode import transcode
from vidcsl.errors import UserError

TRAIN = [
    Row("a/x.avi", "a", "g1"),
    Row("b/dots.in.name.mp4", "b", "g2"),
    Row("loose.webm"),
    Row("a/y.avi", "a", "g1"),
]


@pytest.fixture
def made(tmp_path):
    root = tmp_path / "videos"
    for k, row in enumerate(TRAIN):
        (root / row.video).parent.mkdir(parents=True, exist_ok=True)
        (root / row.video).write_bytes(bytes([k]) * (600 + k))
    write_list(tmp_path / "train.csv", TRAIN)
    write_list(tmp_path / "test.csv", [TRAIN[1]])
    lists = [tmp_path / "train.csv", tmp_path / "test.csv"]
    options = {"shard_bytes": 1300, "workers": 2}
    return {"root": root, "lists": lists, "out": tmp_path / "shards", **options}


def members(path):
    with tarfile.open(path) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}


def test_samples_have_the_form_of_webdataset(made):
    report = shard(**made)
    assert list(report.shards) == ["train-000000.tar", "train-000001.tar", "test-000000.tar"]
    first = members(made["out"] / "train-000000.tar")
    assert list(first) == [
        *("00000000.avi", "00000000.json", "00000000.cls"),
        *("00000001.mp4", "00000001.json", "00000001.cls"),
    ]
    assert first["00000001.mp4"] == bytes([1]) * 601
    facts = json.loads(first["00000001.json"])
    assert facts == {"video": "b/dots.in.name.mp4", "class": "b", "group": "g2"}
    assert first["00000001.cls"] == b"1"
    second = members(made["out"] / "train-000001.tar")
    assert list(second)[:3] == ["00000002.webm", "00000002.json", "00000003.avi"]
    assert members(made["out"] / "test-000000.tar")["00000000.cls"] == b"1"


def test_lists_name_the_places(made):
    shard(**made)
    rows = read_rows(made["out"] / "train.csv")
    assert [row._replace(span=None) for row in rows] == TRAIN
    for row in rows:
        content = (made["out"] / row.span.shard).read_bytes()
        found = content[row.span.offset : row.span.offset + row.span.size]
        assert found == (made["root"] / row.video).read_bytes()
    packed = read_list(made["out"] / "train.csv", root=made["out"])
    plain = read_list(made["lists"][0], root=made["root"])
    assert packed.classes == plain.classes
    for one, other in zip(packed.videos, plain.videos, strict=True):
        assert (one.label, one.group) == (other.label, other.group)
        assert one.source().data == other.path.read_bytes()


def test_the_same_bytes_again_and_what_is_there_is_kept(made, tmp_path):
    first = shard(**made)
    sums = (made["out"] / "SHA256SUMS").read_text()
    for line in sums.splitlines():
        digest, name = line.split("  ")
        assert hashlib.sha256((made["out"] / name).read_bytes()).hexdigest() == digest
    assert shard(**made).resumed == 3
    shard(**made | {"out": tmp_path / "again"})
    assert (tmp_path / "again" / "SHA256SUMS").read_text() == sums
    (made["out"] / "train-000001.tar").unlink()
    (made["root"] / "a/x.avi").write_bytes(b"changed")
    second = shard(**made)
    assert second.resumed == 1
    assert second.shards.keys() == first.shards.keys()


def test_faults(made, tmp_path):
    with pytest.raises(UserError, match="must be positive"):
        shard(**made | {"shard_bytes": 0})
    with pytest.raises(UserError, match="would overwrite"):
        shard(**made | {"out": tmp_path})
    (made["root"] / "a/y.avi").unlink()
    with pytest.raises(UserError, match=r"lacks 1 of 4 video files: a/y\.avi"):
        shard(**made)
    assert not made["out"].exists()


def test_packed_videos_are_not_prepared_once_more(made, tmp_path):
    shard(**made)
    packed = [made["out"] / "train.csv"]
    again = {**made, "lists": packed, "out": tmp_path / "again"}
    with pytest.raises(UserError, match="is a list of packed videos"):
        shard(**again)
    with pytest.raises(UserError, match="is a list of packed videos"):
        transcode(root=made["root"], lists=packed, out_root=tmp_path / "c", out=tmp_path, workers=1)
