import re

import numpy as np
import pytest

from tests.data.made_videos import write_numbered
from tests.tiny_job import fails
from vidcsl.cli import main
from vidcsl.report.pictures import player
from vidcsl.report.previews import ShownCorruption, write_gallery


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return write_numbered(tmp_path_factory.mktemp("gallery") / "some.mp4", frames=12)


def test_every_severity_of_every_name_is_a_film(video, tmp_path, capsys):
    out = tmp_path / "page" / "gallery.html"
    words = ["--names", "fog", "V/banding", "P/jpeg", "--frames", "4", "--side", "48"]
    assert main(["gallery", str(video), "--out", str(out), *words]) == 0
    assert str(out) in capsys.readouterr().out
    page = out.read_text()
    clips = re.findall(r'<video src="data:video/mp4;base64,[^"]+".*?>', page)
    assert len(clips) == 1 + 3 * 5
    assert all('preload="none"' in clip and "autoplay" not in clip for clip in clips)
    labels = re.findall(r'aria-label="([^"]+, severity \d)"', page)
    assert labels[:2] == ["C/fog, severity 1", "C/fog, severity 2"]
    assert "levels 24" in page
    assert "http" not in page.replace("http-equiv", "")


def test_names_never_become_markup(tmp_path):
    frames = np.zeros((2, 16, 16, 3), np.uint8)
    evil = ShownCorruption("<b>", "<i>", "<u>", [("<s>", frames)])
    write_gallery(tmp_path / "x.html", [("<h1>", [evil])], title="<script>", clean=frames)
    page = (tmp_path / "x.html").read_text()
    assert not re.search(r"<(b|i|u|s)>", page)
    assert "&lt;script&gt;" in page


def test_a_player_may_wait_to_be_started():
    frames = np.zeros((2, 16, 16, 3), np.uint8)
    assert "autoplay" in player(frames, label="x")
    assert "autoplay" not in player(frames, label="x", autoplay=False)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--names", "fogg"], "did you mean 'fog'"),
        (["--frames", "0"], "at least 1"),
        (["--side", "-4"], "at least 1"),
    ],
)
def test_mistakes_are_told_in_one_line(video, tmp_path, capsys, words, message):
    command = ["gallery", str(video), "--out", str(tmp_path / "x.html"), *words]
    assert message in fails(capsys, *command)


def test_a_missing_video_is_named(tmp_path, capsys):
    assert "no.mp4" in fails(capsys, "gallery", str(tmp_path / "no.mp4"))


def test_a_very_wide_video_is_shown_by_its_middle(tmp_path, monkeypatch):
    """Scaled to the asked side as a whole, 8 x 2000 pixels would become 12,000 x 48."""
    wide = write_numbered(tmp_path / "wide.mp4", frames=5, size=(16, 2000))
    sizes = []
    monkeypatch.setattr(
        "vidcsl.pipelines.preview.write_gallery",
        lambda out, headed, *, title, clean: sizes.append(clean.shape),
    )
    words = ["--names", "P/jpeg", "--frames", "2", "--side", "48"]
    assert main(["gallery", str(wide), "--out", str(tmp_path / "g.html"), *words]) == 0
    assert sizes == [(2, 48, 192, 3)]
