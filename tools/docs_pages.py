"""What MkDocs adds to docs/: a reference made from the code, and pages that stand elsewhere.

A hook of mkdocs.yml. Links between Markdown files are written as they hold in the source tree; here
they are turned to where the pages lie in the documentation.
"""

import argparse
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from vidcsl.cli import COMMANDS, command_parser
from vidcsl.options import OPTIONS
from vidcsl.registry import Option, allowed_values

ROOT = Path(__file__).parents[1]
ELSEWHERE = {  # where it stands: the page that it becomes
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "benchmarks/results.md": "benchmarks.md",
    "data_lists/README.md": "lists.md",
}
# All else that a page may link to has no page: its name stands there without a link.
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((?!\w+:)([^)#\s]+)(#[^)]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are not in docs/."""
    pages = {page: (ROOT / source).read_text() for source, page in ELSEWHERE.items()}
    pages |= {"options.md": options_page(), "commands.md": commands_page()}
    for name, content in pages.items():
        files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Links of the source tree as links between pages."""
    name = page.file.src_uri
    sources = {page: source for source, page in ELSEWHERE.items()}
    folder = posixpath.dirname(sources.get(name, f"docs/{name}"))
    return LINK.sub(lambda found: _turned(found, folder), markdown)


def options_page() -> str:
    """Every config key: a table a section."""
    sections: dict[str, list[str]] = {}
    for key, option in OPTIONS.items():
        section = key.partition(".")[0] if "." in key else "The run"
        sections.setdefault(section, []).append(_row(key, option))
    head = "| key | default | values | meaning |\n|---|---|---|---|\n"
    tables = [f"## {name}\n\n{head}{''.join(rows)}" for name, rows in sections.items()]
    intro = (
        "# Every config key\n\n"
        "Made from the code. A config file holds them as a tree (`TRAIN: {EPOCHS: 40}`), "
        "the command line as `TRAIN.EPOCHS 40`; a file may name one `_BASE_`, a file or a shipped "
        "config, whose values it overrides, and so may that. Unknown keys, keys that a file gives "
        "twice and values out of range are errors. `vidcsl show options WORD` searches them.\n\n"
    )
    return intro + "\n".join(tables)


def commands_page() -> str:
    """What each command says with `--help`."""
    parts = ["# Commands\n\nMade from the command line itself.\n"]
    for words, parser in _commands(command_parser(*COMMANDS), "vidcsl"):
        parts.append(f"## {words}\n\n```text\n{parser.format_help()}```\n")
    return "\n".join(parts)


def _row(key: str, option: Option) -> str:
    default = repr(option.default) if option.default != "" else "empty"
    meaning = option.meaning.replace("|", "\\|")
    return f"| `{key}` | `{default}` | {_values(option)} | {meaning} |\n"


def _values(option: Option) -> str:
    choices = ", ".join(f"`{choice}`" for choice in option.choices)
    return choices or allowed_values(option)


def _commands(
    parser: argparse.ArgumentParser, words: str
) -> list[tuple[str, argparse.ArgumentParser]]:
    """The commands that run something, those of families among them."""
    families = [each for each in parser._actions if isinstance(each, argparse._SubParsersAction)]
    found = [
        pair
        for family in families
        for name, sub in family.choices.items()
        for pair in _commands(sub, f"{words} {name}")
    ]
    return found if families else [(words, parser)]


def _turned(found: re.Match[str], folder: str) -> str:
    text, target, anchor = found[1], found[2], found[3] or ""
    path = posixpath.normpath(posixpath.join(folder, target))
    if path in ELSEWHERE:
        return f"[{text}]({ELSEWHERE[path]}{anchor})"
    if path.startswith("docs/"):
        return f"[{text}]({path.removeprefix('docs/')}{anchor})"
    # A file without a page; of one that is not there the link stays, and the build fails.
    return f"{text} (`{path}`)" if (ROOT / path).exists() else found[0]
