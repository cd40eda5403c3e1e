"""A study's figures as Markdown, JSON and a page."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from vidcsl.engine.run_folder import write_atomically
from vidcsl.report.page import TEMPLATES, templates
from vidcsl.report.study import charts
from vidcsl.report.study.sentences import headline
from vidcsl.report.study.tables import Table, tables
from vidcsl.report.summary import Tree, number


def write_study(document: Mapping[str, Any], folder: Path) -> list[Path]:
    """`study.json`, `study.md` and `study.html` in a folder.

    Args:
        document: `{"name", "question", "notes": [texts], "settings": {name: as summarise}}`.
        folder: made if need be.
    """
    folder.mkdir(parents=True, exist_ok=True)
    texts = {
        "study.json": json.dumps(document, indent=1) + "\n",
        "study.md": markdown(document),
        "study.html": render(document),
    }
    for name, text in texts.items():
        write_atomically(folder / name, text)
    return [folder / name for name in texts]


def markdown(document: Tree) -> str:
    """All tables, under a heading for each setting."""
    return "\n".join(_blocks(document))


def _blocks(document: Tree) -> Iterator[str]:
    yield f"# {document['name']}\n"
    if document["question"]:
        yield f"{document['question']}\n"
    for note in document["notes"]:
        yield f"- {note}"
    if document["notes"]:
        yield ""
    for setting, summary in document["settings"].items():
        if setting:
            yield f"## {setting}\n"
        yield " ".join(headline(summary)) + "\n"
        for table in tables(summary):
            yield f"### {table.title}\n"
            yield f"{table.note}\n"
            yield from _lines(table)
            yield ""


def _lines(table: Table) -> Iterator[str]:
    yield f"| {' | '.join(table.columns)} |"
    yield f"|{'---|' * len(table.columns)}"
    for row in table.rows:
        yield f"| {' | '.join(cell.text for cell in row)} |"


def render(document: Tree) -> str:
    """The page as text; the same figures give the same text."""
    environment = templates()
    environment.filters.update(number=number)
    return environment.get_template("study.html.j2").render(
        name=document["name"],
        question=document["question"],
        notes=document["notes"],
        settings=[_setting(name, each) for name, each in document["settings"].items()],
        style=Markup((TEMPLATES / "report.css").read_text(encoding="utf-8")),
        script=Markup((TEMPLATES / "report.js").read_text(encoding="utf-8")),
    )


def _setting(name: str, summary: Tree) -> dict[str, Any]:
    attacks = dict.fromkeys(a for arm in summary["arms"].values() for a in arm["attacks"])
    return {
        "name": name,
        "headline": headline(summary),
        "tables": list(tables(summary)),
        "curves": [chart for attack in attacks for chart in charts.attack_charts(summary, attack)],
        "scatters": charts.scatters(summary),
    }
