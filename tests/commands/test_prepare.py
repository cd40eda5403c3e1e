"""Each kind of `vidcsl prepare`, through the command line."""

import json
import zipfile

import pytest

from tests.data.made_videos import write_numbered
from tests.data.prepare.made_archives import rar
from vidcsl.cli import main
from vidcsl.commands.prepare import KINDS
from vidcsl.data.lists import read_list, read_rows


@pytest.fixture
def prepare(tmp_path, monkeypatch, capsys):
    """Runs a kind in `tmp_path`; what it printed."""
    monkeypatch.chdir(tmp_path)

    def run(line, *, status=0):
        assert main(["prepare", *line.split()]) == status
        printed = capsys.readouterr()
        return printed.err if status else printed.out

    return run


@pytest.fixture
def videos(tmp_path):
    """Two classes of two small videos under `videos`."""
    for name in ("a/v_a_g01_c01", "a/v_a_g02_c01", "b/v_b_g01_c01", "b/v_b_g02_c01"):
        (tmp_path / "videos" / name).parent.mkdir(parents=True, exist_ok=True)
        write_numbered(tmp_path / f"videos/{name}.mp4", frames=4)
    return tmp_path / "videos"


def paths(rows):
    return [row.video for row in rows]


def test_ucf101_from_archives(prepare, tmp_path):
    clips = [f"YoYo/v_YoYo_g{k:02d}_c01.avi" for k in (1, 2)]
    (tmp_path / "UCF101.rar").write_bytes(rar({f"UCF-101/{clip}": b"video" for clip in clips}))
    with zipfile.ZipFile("splits.zip", "w") as archive:
        archive.writestr("ucfTrainTestlist/classInd.txt", "1 YoYo\r\n")
        archive.writestr("ucfTrainTestlist/trainlist01.txt", f"{clips[0]} 1\r\n")
        archive.writestr("ucfTrainTestlist/testlist01.txt", f"{clips[1]}\r\n")
    line = "ucf101 --root UCF-101 --archives UCF101.rar --splits s --split-archive splits.zip"
    printed = prepare(f"{line} --subset --workers 1")
    assert "ucf101: 1 classes, 2 videos, 2 groups" in printed
    assert paths(read_rows("data_lists/ucf101/test_split1.csv")) == [clips[1]]
    assert "s/trainlist02.txt does not exist" in prepare(line, status=2)


def test_hmdb51_from_a_rar_of_rars(prepare, tmp_path):
    clips = {
        name: [f"{source}_{name}_f_cm_np1_fr_med_0.avi" for source in ("Film, [1]", "Home")]
        for name in ("wave", "kick_ball")
    }
    inner = {f"{n}.rar": rar({f"{n}/{c}": c.encode() for c in clips[n]}) for n in clips}
    (tmp_path / "hmdb51_org.rar").write_bytes(rar(inner))
    marks = {
        f"testTrainMulti_7030_splits/{n}_test_split1.txt": f"{c[0]} 1 \n{c[1]} 2 \n".encode()
        for n, c in clips.items()
    }
    (tmp_path / "test_train_splits.rar").write_bytes(rar(marks))
    printed = prepare(
        "hmdb51 --root hmdb51 --archives hmdb51_org.rar --splits splits "
        "--split-archive test_train_splits.rar --subset --classes wave"
    )
    assert "hmdb51: 1 classes, 2 videos" in printed
    (row,) = read_rows("data_lists/hmdb51/train_split1.csv")
    assert (tmp_path / "hmdb51" / row.video).read_text() == clips["wave"][0]


def test_annotated_and_foreign_lists(prepare, tmp_path, videos):
    (tmp_path / "train.csv").write_text("label,youtube_id,time_start,time_end\nx,v_a_g01_c01,0,1\n")
    prepare("kinetics --root videos --annotations train.csv --out k")
    assert paths(read_rows("k/train.csv")) == ["a/v_a_g01_c01.mp4"]
    (tmp_path / "labels.json").write_text('{"x": "0"}')
    (tmp_path / "train.json").write_text(json.dumps([{"id": "v_b_g01_c01", "template": "x"}]))
    prepare("ssv2 --root videos --labels labels.json --annotations train.json --out s")
    assert paths(read_rows("s/train.csv")) == ["b/v_b_g01_c01.mp4"]
    (tmp_path / "l.csv").write_text("a/v_a_g01_c01.mp4\t3\n")
    prepare("convert --root videos --lists l.csv --form pyslowfast --separator \\t --out c")
    assert [row.class_name for row in read_rows("c/l.csv")] == ["0003"]


def test_from_a_folder_to_shards(prepare, tmp_path, videos):
    (videos / "b/broken.mp4").write_bytes(b"no video")
    assert "folder: 2 classes, 5 videos" in prepare("folder --root videos --out all --test-share 0")
    printed = prepare("scan --root videos --lists all/train.csv --out sound --workers 1")
    assert "5 videos, 4 sound, 1 set aside" in printed
    printed = prepare(
        "transcode --root videos --lists sound/train.csv --out-root small --out small_lists "
        "--short-side 32 --gop 2 --crf 20 --preset ultrafast --workers 1"
    )
    assert "transcode: 4 videos, 16 frames" in printed
    printed = prepare("shard --root small --lists small_lists/train.csv --out shards --workers 1")
    assert "shard: 1 shards" in printed
    packed = read_list("shards/train.csv", root="shards")
    copies = read_list("small_lists/train.csv", root="small")
    assert [v.source().data for v in packed.videos] == [v.path.read_bytes() for v in copies.videos]
    failing = "transcode --root videos --lists all/train.csv --out-root small --out other"
    assert "b/broken.mp4 (not a readable video" in prepare(failing, status=2)


def test_synthetic(prepare):
    prepare("synthetic --root made --classes spin,blink --size 16 --frames 4")
    assert len(read_rows("made/train.csv")) == 36


def test_faults_are_one_line_and_stopping_is_no_traceback(prepare, monkeypatch):
    assert prepare("folder --root absent", status=2) == (
        "vidcsl: error: folder: absent does not exist\n"
    )

    def interrupted(_):
        raise KeyboardInterrupt

    add_arguments, _work, meaning = KINDS["folder"]
    monkeypatch.setitem(KINDS, "folder", (add_arguments, interrupted, meaning))
    assert prepare("folder --root absent", status=130) == (
        "\nvidcsl: stopped; run the same command again to continue\n"
    )
