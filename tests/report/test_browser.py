"""The page in a real browser: no request to the network, working controls, accessible to all."""

import shutil

import playwright.sync_api as playwright
import pytest
from axe_playwright_python import sync_playwright as axe

from tests.report.run_folder import write_pairs, write_run
from vidcsl.report.neighbours import write_neighbours
from vidcsl.report.page import write_report
from vidcsl.report.pictures import read_pairs

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
TIMEOUT = 300_000  # ms: a loaded machine must not fail a test
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as engine:
        started = engine.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> str:
    return write_report(write_run(tmp_path_factory.mktemp("browser") / "run")).as_uri()


@pytest.fixture
def opened(browser, report, request):
    """The page at a width and in a scheme; afterwards it must have been silent and alone."""
    width, scheme = getattr(request, "param", (1200, "light"))
    view = {"viewport": {"width": width, "height": 800}, "color_scheme": scheme}
    page = browser.new_page(**view)
    page.set_default_timeout(TIMEOUT)
    said, asked = [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda one: asked.append(one.url))
    page.goto(report)
    everything = "document.querySelectorAll('.chart').length"
    page.wait_for_function(f"document.querySelectorAll('.chart svg').length === {everything}")
    yield page
    assert said == []
    assert [url for url in asked if not url.startswith("data:")] == [report]
    page.close()


EVERY = [(1200, "light"), (1200, "dark"), (360, "light"), (360, "dark")]


@pytest.mark.parametrize("opened", EVERY, indirect=True)
def test_it_fits_and_is_accessible(opened):
    assert opened.evaluate("document.documentElement.scrollWidth <= innerWidth")
    found = axe.Axe().run(opened)
    violations = [
        f"{each['id']}: {each['nodes'][0]['html'][:200]}" for each in found.response["violations"]
    ]
    assert violations == []


NARROW = [(360, "light")]


@pytest.mark.parametrize("opened", NARROW, indirect=True)
def test_no_word_of_a_table_is_broken_and_wide_tables_say_so(opened):
    broken = """() => [...document.querySelectorAll("th, td")].filter((cell) => {
      const walker = document.createTreeWalker(cell, NodeFilter.SHOW_TEXT), range = new Range();
      for (let node; (node = walker.nextNode());)
        for (const { index, 0: word } of node.data.matchAll(/\\p{L}+/gu)) {
          range.setStart(node, index);
          range.setEnd(node, index + word.length);
          if (new Set([...range.getClientRects()].map((box) => Math.round(box.top))).size > 1)
            return true;
        }
    }).map((cell) => cell.textContent)"""
    assert opened.evaluate(broken) == []
    wide = """() => [...document.querySelectorAll(".scroll")].map((box) => [
      box.scrollWidth > box.clientWidth + 1,
      getComputedStyle(box, "::before").content.includes("scroll"), box.tabIndex === 0])"""
    found = opened.evaluate(wide)
    assert all(len(set(each)) == 1 for each in found)
    assert any(each[0] for each in found)


def test_paper_has_no_black_boxes_and_no_hints(opened):
    opened.emulate_media(media="print")
    boxes = opened.locator(".scroll")
    assert boxes.first.evaluate("box => getComputedStyle(box).overflowX") == "visible"
    assert opened.locator("video:not([poster^='data:image/jpeg'])").count() == 0
    assert not opened.get_by_role("navigation").is_visible()


@pytest.mark.parametrize("width", [360, 1200])
def test_the_page_of_neighbours_fits(browser, tmp_path, width):
    write_pairs(tmp_path / "pairs.npz", right=2, wrong=1)
    found = {"teacher": "motion", "rule": "auto", "list": "train.csv", "videos": 9, "silent": 0}
    found |= {"flagged": 0.1, "precision": 0.8, "chance": 0.1, "recall": 0.5, "warning": ""}
    found["curve"] = [{"share": 0.1 * i, "precision": 0.8, "recall": 0.1 * i} for i in range(1, 4)]
    found["by_class"] = {"Lunges": {"flagged": 0.1, "precision": 0.8, "recall": None}}
    pairs = [
        (pair, "of one class" if pair.correct else "")
        for pair in read_pairs(tmp_path / "pairs.npz")
    ]
    write_neighbours(tmp_path / "page.html", found, pairs, title="what the teacher flags")
    page = browser.new_page(viewport={"width": width, "height": 800})
    page.set_default_timeout(TIMEOUT)
    page.goto((tmp_path / "page.html").as_uri())
    page.locator(".chart svg").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.locator(".pairs li").count() == 3
    assert page.locator(".pairs li.unknown").count() == 1
    assert axe.Axe().run(page).response["violations"] == []
    page.close()


def test_a_column_sorts_both_ways(opened):
    table = opened.locator("table", has=opened.get_by_role("button", name="Measured by")).first
    column = table.get_by_role("button", name="Top-1")

    def values():
        cells = table.locator("tbody tr td:nth-child(2)").all_inner_texts()
        return [float(cell.split()[0]) for cell in cells]

    column.press("Enter")
    rising = values()
    assert rising == sorted(rising)
    column.click()
    assert values() == rising[::-1]
    assert table.locator("th[aria-sort]").get_attribute("aria-sort") == "descending"


def hovered(page, title: str, x: float, y: float) -> str:
    """The values that are shown while the pointer is at this place of a chart, from 0 to 1."""
    figure = page.locator("figure", has=page.get_by_role("heading", name=title, exact=True))
    chart = figure.locator(".chart svg").first
    chart.scroll_into_view_if_needed()
    box = chart.bounding_box()
    for nudge in (-3, 0):  # a pointer that is just there has not entered
        page.mouse.move(box["x"] + box["width"] * x + nudge, box["y"] + box["height"] * y)
    page.locator("#vg-tooltip-element.visible").wait_for()
    return page.locator("#vg-tooltip-element").inner_text()


@pytest.mark.parametrize("opened", EVERY, indirect=True)
def test_every_chart_is_drawn_labelled_and_in_the_colours_of_the_page(opened):
    charts = opened.locator(".chart")
    assert charts.count() == opened.locator(".chart svg").count() > 10
    for chart in charts.all():
        assert chart.get_attribute("role") == "graphics-document"
        assert chart.get_attribute("aria-label")
    line = opened.locator(".chart .mark-line path").first
    drawn = line.evaluate("line => getComputedStyle(line).stroke")
    probe = "name => { document.body.style.outlineColor = `var(--${name})`; "
    probe += "return getComputedStyle(document.body).outlineColor; }"
    assert drawn == opened.evaluate(probe, "a")


def test_values_are_shown_at_the_pointer(opened):
    found = hovered(opened, "Accuracy over ε", 0.13, 0.6)
    assert "accuracy" in found
    assert "34%" in found
    assert "27.9 to 40.6" in found  # the interval's lower end
    assert "of 5" in hovered(opened, "Nearest neighbours", 0.5, 0.5)


def test_the_pointed_at_video_lights_its_class_and_links_its_neighbours(opened):
    hovered(opened, "Nearest neighbours", 0.5, 0.5)
    map_ = opened.locator("figure.map")
    lit = map_.locator(".mark-symbol path[fill='var(--a)']")
    links = map_.locator(".mark-rule line")
    chosen = opened.get_by_label("Highlight the class")
    assert (lit.count(), links.count()) == (40, 5)
    assert chosen.input_value() != ""
    chosen.select_option("Lunges")
    assert lit.count() == 40
    assert all("Lunges" in dot.get_attribute("aria-label") for dot in lit.all())


def test_videos_play_when_they_are_in_view(opened):
    video = opened.locator(".videos video").first
    video.scroll_into_view_if_needed()
    video.evaluate("video => new Promise(seen => video.addEventListener('timeupdate', seen))")
    assert not video.evaluate("video => video.paused")
    assert video.evaluate("video => video.videoWidth") > 0


def test_every_section_is_one_link_away(opened):
    links = opened.get_by_role("navigation").get_by_role("link").all()
    assert len(links) >= 7
    links[-1].click()
    assert opened.locator(opened.evaluate("location.hash")).is_visible()
