import base64
import io
import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.report.mp4 import assert_videos_alike, videos_of
from tests.report.run_folder import (
    CLASSES,
    DAMAGED,
    SUITE_C,
    SUITE_P,
    log_lines,
    results,
    write_run,
)
from vidcsl.report.page import TEMPLATES, columns, write_report

VOID = {"meta", "link", "img", "input", "br"}
HIT = [f"{ratio}\u202f%" for ratio in (10, 30, 52, 75, 100)]
HEADINGS = {
    "Key figures": "clean",
    "What the features know": "clean",
    "Under attack": "attacks",
    "Under corruptions": "corruptions",
    "Data": "data",
    "Cost": "cost",
}


class Page(HTMLParser):
    """Tags, texts and tables of a page; fails where tags do not close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.headings: list[str] = []
        self.rows: list[list[str]] = []
        self.charts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if {"style", "script"} & set(self.open):
            if self.tags[-1][1].get("type") == "application/json":
                self.charts.append(data)
            return
        self.words.append(data)
        if "h2" in self.open:
            self.headings.append(data)
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data

    @property
    def text(self) -> str:
        return re.sub(r"[ \n]+", " ", " ".join(self.words))

    def row(self, start: str) -> list[str]:
        """The cells beside the one that says `start`, alone or before other words."""
        pattern = re.compile(re.escape(start) + r"($|[ ,(\n])")
        rows = [[cell.strip() for cell in row] for row in self.rows]
        return next(row[1:] for row in rows if pattern.match(row[0]))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run")


def _page(folder: Path) -> Page:
    return Page(write_report(folder).read_text(encoding="utf-8"))


def _with(tmp_path: Path, **changes: Any) -> Page:
    return _page(write_run(tmp_path / "changed", {**results(), **changes}))


def _per_cent(share: float) -> str:
    return f"{100 * share:.1f}\u202f%"


def test_a_full_run_has_every_section(run: Path) -> None:
    beside = {"Learning", "Reproduce", "Caveats"}
    assert set(HEADINGS) | beside == set(_page(run).headings)


@pytest.mark.parametrize("heading", [h for h in HEADINGS if h != "Key figures"])
def test_a_section_without_data_is_left_out(tmp_path: Path, heading: str) -> None:
    content = results()
    for name in (HEADINGS[heading], "geometry"):
        content.pop(name)
    del content["training"]["damaged_videos"]
    folder = write_run(tmp_path / "run", content)
    lines = [line for line in log_lines() if line["kind"] == "train"]
    (folder / "log.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert heading not in _page(folder).headings


def test_a_name_is_enough_for_a_page(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text('{"name": "only a name"}')
    page = _page(tmp_path)
    assert page.headings == []
    assert "only a name" in page.text
    assert (tmp_path / "report.html").stat().st_size < 50_000  # the charts' library is left out


def test_tables_hold_the_numbers_of_the_results(run: Path) -> None:
    page, content = _page(run), results()
    assert page.row("Linear probe, whole videos") == [_per_cent(0.401)]
    assert page.row("R@5") == [_per_cent(0.613)]
    assert page.row("Effective rank") == ["37.42"]
    for name in ("pgd_linf", "pgd_l2"):
        for eps, share in content["attacks"][name].items():
            assert page.row(eps)[0] == _per_cent(share)
    for eps, share in content["survival"]["pgd_linf"].items():
        assert page.row(eps)[2] == _per_cent(share)
    for name, shares in {**SUITE_P, **SUITE_C}.items():
        numbers = [f"{100 * share:.1f}" for share in shares]
        mean = f"{100 * sum(shares) / len(shares):.1f}"
        shown = page.row(name.replace("_", " "))
        assert [
            cell[: len(number)] for cell, number in zip(shown, numbers, strict=False)
        ] == numbers
        assert shown[-1] == mean


def test_headline_says_the_main_numbers(run: Path) -> None:
    text = _page(run).text
    opening = text[: text.index("Key figures")]
    content = results()
    shares = [
        content["clean"]["linear_top1"],
        content["data"]["chance"],
        content["clean"]["knn_top1"],
        content["attacks"]["pgd_linf"]["0.5/255"],
        content["corruptions"]["scores"]["mean"]["accuracy"],
        content["false_negatives"]["precision"],
    ]
    for share in shares:
        assert _per_cent(share) in opening
    assert "528 training videos, 212 test videos" in opening


@pytest.mark.parametrize("value", [None, math.nan])
def test_undefined_numbers_are_called_undefined(tmp_path: Path, value: float | None) -> None:
    scores = {"mean": {"accuracy": value, "retained": value}, "mPC": 0.0, "rPC": value, "over": {}}
    corruptions = {"clean": 0.0, "P": {"jpeg": [value, 0.0]}, "scores": scores}
    page = _with(tmp_path, corruptions=corruptions, clean={"linear_top1": value})
    assert page.row("Linear probe") == ["undefined"]
    assert page.row("jpeg") == ["–", "0.0", "–"]
    assert page.text.count("undefined") >= 5
    assert not re.search(r"\b(nan|None|null)\b", page.text)


def test_attack_without_survival_or_settings(tmp_path: Path) -> None:
    page = _with(tmp_path, survival={}, attack_settings={}, attacks={"mine": {"1/255": 0.25}})
    assert page.row("1/255") == [_per_cent(0.25), "19.7 to 31.2\u202f%"]  # of 212 test videos
    assert page.row("0 (clean)")[0] == _per_cent(0.34)


def test_a_failed_check_is_a_warning_and_a_passed_one_is_not(run: Path) -> None:
    page = _page(run)
    warnings = [attributes for _, attributes in page.tags if attributes.get("class") == "warning"]
    assert len(warnings) == 1
    assert "Check failed: more steps never help the model. Seen: of 16 clips, 20 steps" in page.text
    assert "1 of 2 checks of the attack passed (16 clips, ε = 0.25/255)" in page.text
    assert "1 of 1 checks of the attack passed" in page.text


def test_classes_have_their_shares_and_mistakes(run: Path) -> None:
    page = _page(run)
    rows = {row[0]: row[1:] for row in page.rows if len(row) == 9}
    assert rows["JumpingJack"] == ["40", "40", "28", "12", "5", "0", "0", "Lunges"]
    assert rows["Lunges"][-1] == "–"
    assert "The perturbation over time" in page.text
    many = results()
    many["data"]["classes"] = many["data"]["classes"][:4]  # another list of classes: no table
    (run / "results.json").write_text(json.dumps(many))
    assert "Most frequent mistake" not in _page(run).text


def test_clean_perturbed_and_difference_play_side_by_side(run: Path) -> None:
    page = _page(run)
    videos = [attributes for tag, attributes in page.tags if tag == "video"]
    assert len(videos) == 4  # the other ones are of corruptions
    videos.sort(key=lambda video: "Clean" not in str(video["aria-label"]))
    assert str(videos[0]["src"]).startswith("data:video/mp4;base64,")
    assert videos[0]["aria-label"] == "Clean, Perturbed, Difference × 200"
    policy = next(a["content"] for _, a in page.tags if "http-equiv" in a)
    assert "media-src data:" in str(policy)


def test_a_clip_has_a_still_for_paper(run: Path) -> None:
    for tag, attributes in _page(run).tags:
        if tag == "video":
            kind, _, data = str(attributes["poster"]).partition(",")
            assert kind == "data:image/jpeg;base64"
            still = Image.open(io.BytesIO(base64.b64decode(data)))
            assert still.size == (int(attributes["width"] or 0), int(attributes["height"] or 0))


def test_what_hurts_most_comes_first_and_says_what_its_pixels_are(run: Path) -> None:
    text = _page(run).text
    places = [text.index(f"{name} suite") for name in ("fog", "static rotation", "jpeg")]
    assert places == sorted(places)
    assert f"fog suite C, mean accuracy {_per_cent(0.1924)}" in text
    assert "Shown as the model gets it, scaled to 24\xa0×\xa024 pixels." in text
    assert "Lengths in pixels" in text
    assert "act on the video at its full rate" in text


def test_the_ratio_of_damaged_clips_stands_in_the_table(run: Path) -> None:
    page = _page(run)
    hit = [cell.rpartition("hit")[0].strip()[-5:] for cell in page.row("packet loss")[:-1]]
    assert [cell[-len(text) :] for cell, text in zip(hit, HIT, strict=True)] == HIT
    assert "“Hit”: per cent of the clips" in page.text
    assert page.row("jpeg")[0] == "39.6"  # every clip is changed
    content = results()
    del content["corruptions"]["damaged_clips"]
    (run / "results.json").write_text(json.dumps(content))
    assert "hit" not in "".join(_page(run).row("packet loss"))


def test_caveats_come_before_the_numbers_that_they_are_of(run: Path) -> None:
    text = _page(run).text
    assert text.index("Caveats") < text.index("A linear probe on the frozen features")


def test_flagged_pairs_are_shown_as_they_are_and_as_the_model_saw_them(run: Path) -> None:
    page = _page(run)
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    originals = [each for each in images if each.get("class") == "original"]
    assert len(originals) == 8  # two of each of four pairs
    assert all("in the video" in str(each["alt"]) for each in originals)
    assert sum("as the model saw them" in str(each["alt"]) for each in images) == 8
    assert "above as they are in the video" in page.text


def test_tables_stand_in_boxes_that_can_scroll(run: Path) -> None:
    page = _page(run)
    tags = [(tag, attributes) for tag, attributes in page.tags if tag in ("div", "table")]
    for i, (tag, _) in enumerate(tags):
        if tag == "table":
            assert tags[i - 1][1]["class"] == "scroll"
            assert tags[i - 1][1]["aria-label"]


@pytest.mark.parametrize(
    ("count", "most", "found"),
    [(1, 6, 1), (2, 6, 2), (5, 6, 5), (6, 6, 6), (7, 6, 4), (8, 7, 4), (3, 2, 2), (13, 6, 5)],
)
def test_no_card_is_alone_in_the_last_row(count: int, most: int, found: int) -> None:
    assert columns(count, most) == found


def test_without_flagged_pairs_there_is_no_precision(tmp_path: Path) -> None:
    page = _with(tmp_path, false_negatives={"detector": "none", "precision": None, "removed": 0.0})
    assert "Flagged correctly" not in page.text


def test_flagged_pairs_by_class_are_a_table(run: Path) -> None:
    page = _page(run)
    for i, name in enumerate(CLASSES):
        assert page.row(name) == [_per_cent(0.05 + 0.01 * i), _per_cent(0.5 - 0.1 * i), "–"]
    unremoved = {name: {"removed": 0.0, "precision": None, "recall": 0.0} for name in CLASSES}
    nothing = {"detector": "none", "treatment": "eliminate", "by_class": unremoved}
    (run / "results.json").write_text(json.dumps({**results(), "false_negatives": nothing}))
    assert "Flagged pairs by class" not in _page(run).text


def test_the_page_fetches_nothing(run: Path) -> None:
    page = _page(run)
    text = (run / "report.html").read_text(encoding="utf-8")
    # The charts' library names schemas and namespaces; that it asks for none, test_browser.py sees.
    before, _, _ = text.partition('<script type="module">')
    assert not re.search(r"(?i)https?://|//cdn|@import|url\(", before)
    assert "default-src 'none'" in before
    for _, attributes in page.tags:
        for name in ("src", "href"):
            assert (attributes.get(name) or "data:").startswith("data:")


def test_names_never_become_markup(tmp_path: Path) -> None:
    evil = '<script>alert("x")</script><img src=x onerror=y>\'"&'
    content = results()
    content["name"] = evil
    content["data"]["classes"] = [evil]
    content["attacks"] |= {evil: {"1/255": 0.1}}
    content["attack_settings"] |= {evil: {evil: evil}}
    failed = {"name": evil, "passed": False, "seen": evil}
    content["attack_checks"] = {evil: {"eps": evil, "clips": 3, "checks": [failed]}}
    table = {"clips": [3], "clean": [2], evil: [1], "1/255": [1], "mistaken_for": [0]}
    content["attack_classes"] = {evil: table}
    content["attack_frames"] = {evil: {evil: [1.0], "1/255": [1.0, 2.0]}}
    content["corruptions"]["P"] = {evil: [0.1]}
    content["corruptions"]["scores"]["over"] = {evil: {"corruptions": evil, "published": evil}}
    content["clean"]["retrieval"] = {evil: 0.1}
    content["false_negatives"]["detector"] = evil
    content["cost"]["seconds"] = {evil: 3.0}
    plain = _page(write_run(tmp_path / "plain"))
    folder = write_run(tmp_path / "evil", content)
    (folder / "config.yaml").write_text(evil)
    (folder / "environment.json").write_text(json.dumps({"command": evil, evil: evil}))
    (folder / "log.jsonl").write_text(json.dumps({"kind": "note", "text": evil}))
    page = _page(folder)
    scripts = [
        sum(tag == "script" and "json" not in str(attributes) for tag, attributes in one.tags)
        for one in (page, plain)
    ]
    assert scripts == [2, 2]
    assert not any("onerror" in attributes for _, attributes in page.tags)
    images = [sum(tag == "img" for tag, _ in one.tags) for one in (page, plain)]
    assert images[0] == images[1]
    assert page.text.count("onerror=y") >= 9


def test_the_same_files_give_the_same_page(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / str(i) / "run") for i in range(2)]
    pages = [write_report(folder).read_text() for folder in (*folders, folders[0])]
    (text, videos), *others = map(videos_of, pages)
    for other_text, other_videos in others:
        assert other_text == text
        assert_videos_alike(other_videos, videos)


def test_figures_have_words_for_those_who_cannot_see_them(run: Path) -> None:
    page = _page(run)
    for tag, attributes in page.tags:
        if tag == "img":
            assert attributes["alt"]
    charts, panels, maps = 13, len(CLASSES), 1
    assert len(page.charts) == charts + panels + maps
    assert all(json.loads(chart)["description"] for chart in page.charts)


def test_damaged_videos_and_notes_are_listed_once(run: Path) -> None:
    text = _page(run).text
    assert text.count(DAMAGED) == 1
    assert "(2 times)" in text
    assert "17 videos are shorter than a clip" in text
    assert ", ".join(CLASSES) in text


def test_pages_need_no_torch(run: Path) -> None:
    modules = "vidcsl.report.previews, vidcsl.studies.page"
    check = f"import sys, {modules}; from vidcsl.cli import main; main(sys.argv[1:]); " + (
        "raise SystemExit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", check, "report", str(run)], check=True)
    assert (run / "report.html").is_file()


def _luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("theme", [0, 1])
def test_texts_stand_out_from_what_is_behind_them(theme: int) -> None:
    style = (TEMPLATES / "report.css").read_text()
    palettes = [
        dict(re.findall(r"--(\w+): (#\w{6})", p))
        for p in re.findall(r":root \{(.*?)\}", style, re.S)
    ]
    colours = palettes[theme]
    pairs = [
        (text, back) for text in ("ink", "soft", "a", "b", "c", "d") for back in ("page", "card")
    ]
    for text, back in [*pairs, ("ink", "heat")]:
        dark, light = sorted(_luminance(colours[name]) for name in (text, back))
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (text, back)
