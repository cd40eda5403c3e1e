"""The tables of the docs list what the code has, and every option has a use or a place there."""

import re
from pathlib import Path

import pytest
import yaml

from vidcsl.config import CONFIGS, flatten
from vidcsl.methods import METHODS
from vidcsl.methods.adversarial import Attacking
from vidcsl.methods.false_negatives import DETECTORS, TREATMENTS
from vidcsl.methods.losses import LOSSES
from vidcsl.models import ENCODERS
from vidcsl.models.pretrained import LAYOUTS
from vidcsl.options import OPTIONS
from vidcsl.pipelines.model import encoder_options

DOCS = Path(__file__).parents[1] / "docs"
METHODS_WITH_A_TABLE_OF_THEIR_OWN = {
    name for name, kind in METHODS.items() if issubclass(kind, Attacking) or name == "deacl"
}


def table(page, first):
    """Cells of each row of the table whose first header is `first`, by the name in its first."""
    text = (DOCS / page).read_text()
    lines = text[text.index(f"| {first} |") :].splitlines()[2:]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0].strip("`"): row for row in rows[: lines.index("")]}


def values(node):
    """Keys and values of a YAML document at any depth: studies nest configs in their arms."""
    if isinstance(node, list):
        for each in node:
            yield from values(each)
    elif isinstance(node, dict):
        yield from flatten(node, where="a config")
        for each in node.values():
            yield from values(each)


def test_every_option_is_used_by_a_shipped_config_or_explained_in_the_docs():
    text = "".join(page.read_text() for page in DOCS.glob("*.md"))
    configs = [yaml.safe_load(path.read_text()) for path in CONFIGS.rglob("*.yaml")]
    used = set(values(configs))
    unused = [
        key
        for key in OPTIONS
        if key not in used and not re.search(rf"(?<![\w.]){re.escape(key)}(?!\w)", text)
    ]
    assert unused == []


@pytest.mark.parametrize(
    ("registry", "elsewhere"),
    [
        (METHODS, METHODS_WITH_A_TABLE_OF_THEIR_OWN),
        (LOSSES, set()),
        (DETECTORS, set()),
        (TREATMENTS, set()),
    ],
    ids=lambda each: getattr(each, "key", ""),
)
def test_methods_losses_detectors_and_treatments_and_their_options(registry, elsewhere):
    rows = table("methods.md", f"`{registry.key}`")
    assert list(rows) == [name for name in registry if name not in elsewhere]
    section = registry.key.rpartition(".")[0]
    own = {key for key in registry.options() if key != registry.key}
    for name, row in rows.items():
        takes = {
            key
            for key in own
            if name in registry.takers(key.removeprefix(f"{section}.")) and "." in key
        }
        assert takes <= set(re.findall(r"[A-Z_]+\.[A-Z_]+", row[-1])) <= set(OPTIONS), name


def test_adversarial_methods():
    assert set(table("adversarial.md", "`METHOD.NAME`")) == METHODS_WITH_A_TABLE_OF_THEIR_OWN


def test_encoders_and_the_options_that_they_take():
    rows = table("models.md", "`MODEL.NAME`")
    assert sorted(rows) == sorted(ENCODERS)
    for name, row in rows.items():
        options = [f"MODEL.{word}" for word in re.findall(r"[A-Z]+", row[-1])]
        assert options == encoder_options(name)


def test_formats_and_the_encoders_that_they_fit():
    rows = table("models.md", "FORMAT")
    assert list(rows) == list(LAYOUTS)
    for name, row in rows.items():
        layout = LAYOUTS[name]
        assert row[1] == layout.meaning
        assert tuple(re.findall(r"`(\w+)`", row[2])) == layout.encoders
        assert ("BGR" in row[3]) == layout.bgr
        assert layout.normalisation in row[3]
