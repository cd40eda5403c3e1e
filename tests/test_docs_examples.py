"""The examples of the docs are what they say: Python that runs, commands that are understood."""

import re
import shlex
from contextlib import ExitStack
from pathlib import Path
from unittest.mock import patch

import pytest

from vidcsl.cli import command_parser
from vidcsl.methods import METHODS
from vidcsl.methods.false_negatives import DETECTORS
from vidcsl.models import ENCODERS
from vidcsl.robustness.attacks import SOLVERS
from vidcsl.robustness.corruptions.suites import SUITES

DOCS = Path(__file__).parents[1] / "docs"
RUN = ("own_model.md", "packages.md", "extend.md")  # from their first line to their last
FAMILIES = (ENCODERS, METHODS, DETECTORS, SOLVERS, SUITES["V"])


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (DOCS / page).read_text(), re.S | re.M)


@pytest.mark.parametrize("page", RUN)
def test_the_python_of_a_page_runs_block_after_block(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names, known = {"__name__": page}, [len(family) for family in FAMILIES]
    with ExitStack() as restored:
        for family in FAMILIES:
            restored.enter_context(patch.dict(family))
        for code in blocks(page, "python"):
            exec(compile(code, page, "exec"), names)
        added = [len(family) - before for family, before in zip(FAMILIES, known, strict=True)]
    assert added == ([1] * len(FAMILIES) if page == "extend.md" else [0] * len(FAMILIES))


def test_what_extends_it_is_short():
    for code in blocks("extend.md", "python"):
        assert len(code.splitlines()) < 60


@pytest.mark.parametrize("page", [path.name for path in sorted(DOCS.glob("*.md"))])
def test_the_commands_of_a_page_are_understood(page):
    for block in blocks(page, ""):
        for command in re.findall(r"^vidcsl ((?:.*\\\n)*.*)$", block, re.M):
            words = shlex.split(command.replace("\\\n", " "), comments=True)
            assert callable(command_parser(words[0]).parse_args(words).run)
