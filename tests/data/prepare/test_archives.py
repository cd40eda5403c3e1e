import os
import zipfile

import pytest

from tests.data.prepare.made_archives import rar
from vidcsl.data.prepare.archives import SPLIT_FILES, VIDEOS, unpack
from vidcsl.errors import UserError

UCF = {
    "UCF-101/YoYo/v_YoYo_g01_c01.avi": b"one",
    "UCF-101/YoYo/v_YoYo_g01_c02.avi": b"two" * 1000,
    "UCF-101/notes.txt": b"not a video",
    "__MACOSX/UCF-101/YoYo/._v_YoYo_g01_c01.avi": b"what macOS packs beside each file",
}
HMDB = {
    f"{name}.rar": rar({f"{name}/{k}.avi": f"{name} {k}".encode() for k in range(3)})
    for name in ("wave", "kick_ball")
}


def write(path, content):
    path.write_bytes(content)
    return path


def write_zip(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def files(folder):
    """Everything but the record, with its content."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(".unpacked")
    }


@pytest.mark.parametrize("kind", ["rar", "zip"])
def test_one_archive(tmp_path, kind):
    path = tmp_path / f"UCF101.{kind}"
    write(path, rar(UCF)) if kind == "rar" else write_zip(path, UCF)
    sizes = unpack([path], tmp_path / "out", selection=VIDEOS, workers=1)
    expected = {"YoYo/v_YoYo_g01_c01.avi": b"one", "YoYo/v_YoYo_g01_c02.avi": b"two" * 1000}
    assert files(tmp_path / "out") == expected
    assert sizes == {place: len(content) for place, content in expected.items()}


def test_archives_in_an_archive_are_resumed(tmp_path):
    path, out = write(tmp_path / "hmdb51_org.rar", rar(HMDB)), tmp_path / "out"
    sizes = unpack([path], out, selection=VIDEOS, workers=2)
    expected = {f"{name}/{k}.avi": f"{name} {k}".encode() for name in HMDB for k in range(3)}
    expected = {place.replace(".rar", ""): c for place, c in expected.items()}
    expected = {place: content.replace(b".rar", b"") for place, content in expected.items()}
    assert files(out) == expected
    times = {place: (out / place).stat().st_mtime_ns for place in expected}
    (out / "wave/1.avi").unlink()
    assert unpack([path], out, selection=VIDEOS, workers=1) == sizes
    assert files(out) == expected
    # Only the inner archive that lacked a file was opened again.
    changed = {p for p in expected if (out / p).stat().st_mtime_ns != times[p]}
    assert changed == {f"wave/{k}.avi" for k in range(3)}


def test_split_files_lose_their_folder(tmp_path):
    path = write_zip(tmp_path / "s.zip", {"ucfTrainTestlist/classInd.txt": b"1 YoYo", "x.avi": b""})
    unpack([path], tmp_path / "out", selection=SPLIT_FILES, workers=1)
    assert files(tmp_path / "out") == {"classInd.txt": b"1 YoYo"}


@pytest.mark.parametrize("kind", ["rar", "zip"])
@pytest.mark.parametrize(
    "name", ["../a/x.avi", "/etc/a/x.avi", "a/../../x.avi", "C:/a/x.avi", "a\\..\\..\\x.avi"]
)
def test_members_that_point_outside_are_refused(tmp_path, kind, name):
    members = {"a/fine.avi": b"fine", name: b"evil"}
    path = tmp_path / f"evil.{kind}"
    write(path, rar(members)) if kind == "rar" else write_zip(path, members)
    with pytest.raises(UserError, match=r"evil\.\w+: refused, .* outside the target: .*x\.avi"):
        unpack([path], tmp_path / "out", selection=VIDEOS, workers=1)
    assert not (tmp_path / "out").exists()


def test_an_inner_archive_is_as_suspect(tmp_path):
    inner = rar({"a/fine.avi": b"fine", "../../x.avi": b"evil"})
    path = write(tmp_path / "outer.rar", rar({"inner.rar": inner}))
    with pytest.raises(UserError, match=r"inner\.rar: refused, .* outside the target"):
        unpack([path], tmp_path / "out", selection=VIDEOS, workers=1)
    assert files(tmp_path / "out") == {}


def test_links_are_refused(tmp_path):
    members = {"a/up.avi": b"../..", "a/x.avi": b"x"}
    path = write(tmp_path / "links.rar", rar(members, links=["a/up.avi"]))
    with pytest.raises(UserError, match=r"refused, it contains links: a/up\.avi"):
        unpack([path], tmp_path / "out", selection=VIDEOS, workers=1)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("absent.rar", None, "does not exist"),
        ("a.7z", b"7z", r"unknown kind of archive, not one of \.rar, \.zip"),
        ("a.rar", b"no archive", r"a\.rar is damaged"),
        ("a.zip", b"no archive", r"a\.zip is damaged"),
        ("a.rar", rar({"note.txt": b""}), r"no \.avi or .* file is in these archives"),
        ("a.rar", rar({"1/a/x.avi": b"", "2/a/X.avi": b""}), "two members .* become a/X.avi"),
        ("a.rar", rar({"a/x.avi": b"content"}).replace(b"content", b"CONTENT"), "damaged.*CRC"),
        ("a.rar", rar({"a/x.avi": b"content" * 99})[:-300], r"a\.rar is damaged"),
    ],
)
def test_bad_archives(tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        unpack([path], tmp_path / "out", selection=VIDEOS, workers=1)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "out").rglob("*.avi"))


def test_a_compressed_archive_needs_a_program(tmp_path, monkeypatch):
    path = write(tmp_path / "a.rar", rar({"a/x.avi": b"x"}, method=0x33))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="compressed: install unrar or unar"):
        unpack([path], tmp_path / "out", selection=VIDEOS, workers=1)
    assert os.listdir(tmp_path) == ["a.rar"]
