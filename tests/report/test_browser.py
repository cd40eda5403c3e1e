"""The page in a real browser: nothing is asked of the network, controls work, anyone can use it."""

import shutil

import playwright.sync_api as playwright
import pytest
from axe_playwright_python import sync_playwright as axe

from tests.report.run_folder import write_run
from vidcsl.report.page import write_report

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")


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
    said, asked = [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda one: asked.append(one.url))
    page.goto(report)
    yield page
    assert said == []
    assert [url for url in asked if not url.startswith("data:")] == [report]
    page.close()


EVERY = [(1200, "light"), (1200, "dark"), (360, "light"), (360, "dark")]


@pytest.mark.parametrize("opened", EVERY, indirect=True)
def test_it_fits_and_is_accessible(opened):
    assert opened.evaluate("document.documentElement.scrollWidth <= innerWidth")
    found = axe.Axe().run(opened)
    told = [
        f"{each['id']}: {each['nodes'][0]['html'][:200]}" for each in found.response["violations"]
    ]
    assert told == []


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


def test_a_touched_video_lights_its_class_and_neighbours(opened):
    map_, told = opened.locator(".map"), opened.locator(".touch output")
    map_.locator("circle").nth(3).click(force=True)
    assert map_.locator("circle.same").count() == 40
    assert map_.locator("line").count() == 5
    right = map_.locator("line.right").count()
    assert f"{right} of its 5 nearest neighbours are of its class" in told.inner_text()
    assert opened.get_by_label("Light up the class").input_value() == "BenchPress"
    opened.get_by_label("Light up the class").select_option("Lunges")
    assert map_.locator("circle.same").first.get_attribute("data-class") == "Lunges"
    assert map_.locator("line").count() == 0
    assert told.inner_text() == "40 videos of Lunges."


def test_films_play_when_they_are_seen(opened):
    film = opened.locator(".films video").first
    film.scroll_into_view_if_needed()
    film.evaluate("film => new Promise(seen => film.addEventListener('timeupdate', seen))")
    assert not film.evaluate("film => film.paused")
    assert film.evaluate("film => film.videoWidth") > 0


def test_every_section_is_one_link_away(opened):
    links = opened.get_by_role("navigation").get_by_role("link").all()
    assert len(links) >= 7
    links[-1].click()
    assert opened.locator(opened.evaluate("location.hash")).is_visible()
