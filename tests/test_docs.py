"""What docs/models.md says of encoders and formats is what the code has."""

import re
from pathlib import Path

from vidcsl.models import ENCODERS
from vidcsl.models.pretrained import LAYOUTS
from vidcsl.pipelines.model import encoder_options

MODELS = (Path(__file__).parents[1] / "docs" / "models.md").read_text()


def table(first):
    """Cells of each row of the table whose first header is `first`, by the name in its first."""
    lines = MODELS[MODELS.index(f"| {first} |") :].splitlines()[2:]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0].strip("`"): row for row in rows[: lines.index("")]}


def test_encoders_and_the_options_that_they_take():
    rows = table("`MODEL.NAME`")
    assert sorted(rows) == sorted(ENCODERS)
    for name, row in rows.items():
        options = [f"MODEL.{word}" for word in re.findall(r"[A-Z]+", row[-1])]
        assert options == encoder_options(name)


def test_formats_and_the_encoders_that_they_fit():
    rows = table("FORMAT")
    assert list(rows) == list(LAYOUTS)
    for name, row in rows.items():
        layout = LAYOUTS[name]
        assert row[1] == layout.meaning
        assert tuple(re.findall(r"`(\w+)`", row[2])) == layout.encoders
        assert ("BGR" in row[3]) == layout.bgr
        assert layout.normalisation in row[3]
