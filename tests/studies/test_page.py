"""The study's page in a browser, where there is one."""

import json
import re
import shutil
import subprocess
from html import unescape

import pytest

from tests.studies.made import read_arms, write_run
from vidcsl.studies.analysis import summarise
from vidcsl.studies.page import write_study

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
PROBE = """<script>
addEventListener("error", (event) => { document.title = "error: " + event.message; });
addEventListener("load", async () => {
  while (document.querySelector(".chart:not(:has(svg))"))
    await new Promise((done) => setTimeout(done, 20));
  const table = document.querySelectorAll("table")[1], names = () =>
    [...table.tBodies[0].rows].map((row) => row.cells[0].textContent).join();
  const before = names(), button = table.tHead.querySelectorAll("button")[2];
  button.click();
  const once = names();
  button.click();
  const scheme = matchMedia("(prefers-color-scheme: dark)").matches;
  const found = { before, once, twice: names(), scheme,
    wide: document.documentElement.scrollWidth - innerWidth,
    unlabelled: document.querySelectorAll(".chart:not([aria-label])").length,
    drawn: document.querySelectorAll(".chart svg").length,
    ground: getComputedStyle(document.body).backgroundColor };
  document.body.dataset.found = JSON.stringify(found);
});
</script>"""


def page(tmp_path, *, seeds=4, question="<Why?>"):
    """Two arms beside a reference; enough seeds for scatter plots."""
    arms = {"plain": (2, 0.5), "removal": (5, 0.7), "supervised": (8, 0.6)}
    folders = [
        write_run(
            *(tmp_path, name, seed),
            fooled=([None] * (kept - seed % 2) + ["1/255"] * (9 - kept + seed % 2) + ["clean"]) * 4,
            clean=clean,
            config={"METHOD": {"NAME": name, "TEMPERATURE": 0.1}},
            geometry={"uniformity": -1.0 - 0.1 * kept - 0.01 * seed, "margin": 0.01 * kept},
        )
        for name, (kept, clean) in arms.items()
        for seed in range(seeds)
    ]
    (folders[0] / "report.html").touch()
    summary = summarise(read_arms(folders), baseline="plain", references=["supervised"])
    document = {
        "name": "made",
        "question": question,
        "notes": ["`vidcsl study` was stopped"],
        "settings": {"": summary},
    }
    return write_study(document, tmp_path / "out")[-1]


def look(path, *, dark, width):
    before, _, after = path.read_text().rpartition("</body>")
    shown = path.with_name(f"shown{dark}{width}.html")
    shown.write_text(before + PROBE + "</body>" + after)
    scheme = ["--blink-settings=preferredColorScheme=0"] if dark else []
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", *scheme]
    command += [
        f"--window-size={width},900",
        "--virtual-time-budget=60000",
        "--dump-dom",
        shown.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    assert "<title>error" not in done.stdout
    found = re.search(r'data-found="([^"]*)"', done.stdout).group(1)
    return json.loads(found.replace("&quot;", '"'))


def words_of(path):
    """What the page says, without tags, scripts and styles."""
    text = re.sub(r"(?s)<(style|script).*?</\1>", " ", path.read_text())
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", text)).split())


def test_the_page_answers_and_leads_to_the_runs(tmp_path):
    path = page(tmp_path)
    text, source = words_of(path), path.read_text()
    assert "The answer of the numbers: Under PGD L∞ at ε = 2/255, plain keeps" in text
    assert "`" not in text
    assert "<code>vidcsl study</code> was stopped" in source
    assert "<code>pgd/linf</code>" in source
    assert 'href="../plain/seed0/report.html">report of seed 0</a>, seed 1 (no report)' in source
    assert "What each arm sets" in text
    assert "arm METHOD.NAME plain plain removal removal supervised supervised" in text
    assert "What all arms have in common (1 options) METHOD.TEMPERATURE: 0.1" in text
    assert text.index("Tables") < text.index("Geometry against robustness")
    assert "What the numbers say:" in words_of(page(tmp_path / "without", question=""))


def test_few_runs_have_no_scatter_plot(tmp_path):
    assert "Geometry against robustness" not in words_of(page(tmp_path, seeds=2))


@pytest.mark.skipif(not BROWSER, reason="no Chromium here")
def test_the_page_sorts_fits_and_follows_the_colour_scheme(tmp_path):
    path = page(tmp_path)
    assert "&lt;Why?&gt;" in path.read_text()
    found = look(path, dark=False, width=1200)
    assert found["before"] == "plain,removal,supervised"
    assert found["once"] == "plain,supervised,removal"
    assert found["twice"] == "removal,supervised,plain"
    assert found["unlabelled"] == 0
    assert found["drawn"] >= 4
    dark = look(path, dark=True, width=520)
    assert (found["scheme"], dark["scheme"]) == (False, True)
    assert found["ground"] != dark["ground"]
    assert max(found["wide"], dark["wide"]) <= 0
