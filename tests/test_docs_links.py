"""Links between the Markdown files of the source tree lead somewhere."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "benchmarks" / "results.md",
    ROOT / "data_lists" / "README.md",
]
MADE = {"options.md", "commands.md"}  # from the code, when the documentation is built


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_local_link_has_its_file(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.S | re.M)
    targets = re.findall(r"\]\((?!\w+:|#)([^)#\s]+)", text)
    missing = [each for each in targets if each not in MADE and not (page.parent / each).exists()]
    assert missing == []
