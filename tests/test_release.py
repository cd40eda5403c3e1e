"""What a release says of itself in several places is one thing."""

import re
from pathlib import Path

import yaml

from vidcsl import __version__

ROOT = Path(__file__).parents[1]


def test_the_version_is_semantic_and_the_same_everywhere():
    assert re.fullmatch(r"\d+\.\d+\.\d+(-[0-9a-z.]+)?", __version__)
    assert str(yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"]) == __version__
    first = re.search(r"^## (\S+) \((unreleased|\d{4}-\d\d-\d\d)\)$", _read("CHANGELOG.md"), re.M)
    assert first is not None
    assert first[1] == __version__


def test_every_dependency_has_its_licence_in_the_docs():
    section = _read("docs/licences.md").partition("## Dependencies")[2]
    listed = set(re.findall(r"^\| (\S+) \| ", section, re.M)) - {"package"}
    assert listed == set(_dependencies())


def test_a_package_is_asked_for_once():
    names = _dependencies()
    assert len(names) == len(set(names))


def test_checkers_of_types_find_the_types():
    assert (ROOT / "vidcsl" / "py.typed").exists()


def _dependencies() -> list[str]:
    """As pyproject.toml lists them: what is installed may be of another day."""
    section = _read("pyproject.toml").partition("\ndependencies = [")[2].partition("\n]")[0]
    return re.findall(r'^    "([\w-]+)', section, re.M)


def _read(name: str) -> str:
    return (ROOT / name).read_text()
