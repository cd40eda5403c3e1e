"""The files of a run's folder, read and checked."""

import json
from pathlib import Path
from typing import Any

from vidcsl.errors import UserError
from vidcsl.report.summary import Tree, number

# What holds what in results.json, as far as the page relies on it; "*" stands for any other key.
_FORM: dict[str, Any] = {
    "data": {"classes": list, "left_out": list},
    "training": {"damaged_videos": list},
    "clean": {"retrieval": dict, "intervals": {"*": list}, "low_shot": {"*": {"draws": list}}},
    "splits": {"mean": dict},
    "transfer": {"*": dict},
    "geometry": {"histogram": {"edges": list, "same_class": list, "other_class": list}},
    "false_negatives": {"by_class": {"*": dict}},
    "attacks": {"*": dict},
    "survival": {"*": dict},
    "attack_settings": {"*": dict},
    "attack_classes": {"*": {"*": list}},
    "attack_frames": {"*": {"*": list}},
    "attack_checks": {"*": {"checks": list}},
    "corruptions": {
        **{suite: {"*": list} for suite in ("P", "C", "V")},
        "scores": {"over": {"*": dict}, "suites": {"*": {"*": {"interval": {"*": list}}}}},
        "repeated_frames": {"*": list},
    },
    "cost": {"seconds": dict},
}


def read_results(path: Path) -> dict[str, Any]:
    """`results.json` with an empty dict for every section that is absent.

    Raises:
        UserError: it is missing, damaged, or a section is not of the form of docs/design.md.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist; give the folder of a run whose training has ended")
    results = read_mapping(path)
    for name, form in _FORM.items():
        section = results.get(name)
        results[name] = {} if section is None else section
        if not _fits(results[name], form):
            raise UserError(f"{path}: section {name} is damaged; run the evaluation again")
    return results


def _fits(value: object, form: Any) -> bool:
    if not isinstance(form, dict):
        return isinstance(value, form)
    return isinstance(value, dict) and all(
        _fits(inner, form.get(key, form.get("*", object))) for key, inner in value.items()
    )


def read_log(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The lines of `log.jsonl`, and how many cannot be read (a crash may cut one off).

    A resumed run repeats steps: of a training step the last line counts.
    """
    lines: list[dict[str, Any]] = []
    unreadable = 0
    for text in filter(str.strip, read_text(path).splitlines()):
        try:
            line = json.loads(text)
        except ValueError:
            line = None
        if isinstance(line, dict):
            lines.append(line)
        else:
            unreadable += 1
    trained = {line["step"]: line for line in lines if _is_training(line)}
    others = [line for line in lines if line.get("kind") != "train"]
    return [trained[step] for step in sorted(trained)] + others, unreadable


def _is_training(line: Tree) -> bool:
    return line.get("kind") == "train" and None not in (
        number(line.get("epoch")),
        number(line.get("step")),
    )


def read_mapping(path: Path) -> dict[str, Any]:
    """A JSON object; empty where the file is absent."""
    try:
        content = json.loads(read_text(path) or "{}")
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); run the evaluation again") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold a JSON object; run the evaluation again")
    return content


def read_text(path: Path) -> str:
    """A file's text; empty where the file is absent."""
    try:
        return path.read_text(encoding="utf-8") if path.is_file() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
