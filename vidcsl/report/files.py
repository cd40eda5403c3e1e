"""The files of a run's folder, read and checked: results, log, arrays.

A report is made from these alone, so each may be absent, and whatever is damaged is one clear
error rather than a traceback from the middle of a page.
"""

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from vidcsl.errors import UserError

Tree = Mapping[str, Any]

# The types of results.json, as far as a page relies on them; "*" stands for any other key.
_TYPES: dict[str, Any] = {
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


def number(value: object) -> float | None:
    """`value` where it is a finite number, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def read_results(path: Path) -> dict[str, Any]:
    """`results.json` with an empty dict for every section that is absent.

    Raises:
        UserError: it is missing, damaged, or a section has other types than docs/design.md says.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist; give the folder of a finished run")
    results = read_mapping(path)
    for name, types in _TYPES.items():
        results[name] = {} if results.get(name) is None else results[name]
        if not _fits(results[name], types):
            raise UserError(f"{path}: section {name} is damaged; run the evaluation again")
    found = results["false_negatives"]
    for flagged in (found, *found.get("by_class", {}).values()):
        _rename_removed(flagged)
    return results


def _fits(value: object, types: Any) -> bool:
    if not isinstance(types, dict):
        return isinstance(value, types)
    return isinstance(value, dict) and all(
        _fits(inner, types.get(key, types.get("*", object))) for key, inner in value.items()
    )


def _rename_removed(entry: dict[str, Any]) -> None:
    """Earlier versions called the ratio of flagged pairs "removed"."""
    if "removed" in entry:
        entry.setdefault("flagged", entry["removed"])


def read_log(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The lines of `log.jsonl`, and how many cannot be read (a crash may cut one off).

    A resumed run repeats steps: of a training step the last line counts.
    """
    trained: dict[Any, dict[str, Any]] = {}
    others: list[dict[str, Any]] = []
    unreadable = 0
    # By step rather than by line: a training line without a step cannot be placed, and is left out.
    for text in filter(str.strip, read_text(path).splitlines()):
        try:
            line = json.loads(text)
        except ValueError:
            line = None
        if not isinstance(line, dict):
            unreadable += 1
        elif line.get("kind") != "train":
            others.append(line)
        elif number(line.get("epoch")) is not None and number(line.get("step")) is not None:
            _rename_removed(line)
            trained[line["step"]] = line
    return [trained[step] for step in sorted(trained)] + others, unreadable


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


def read_arrays(path: Path, *names: str) -> list[NDArray[Any]]:
    """The arrays of an `.npz` file by name.

    Raises:
        UserError: the file is damaged or lacks one of them.
    """
    with _opened(path) as stored:
        for name in names:
            if name not in stored.files:
                raise UserError(f"{path} has no array {name!r}; run the evaluation again")
        return [stored[name] for name in names]


def has_array(path: Path, name: str) -> bool:
    """Whether the file holds an array of this name. Raises as `read_arrays`."""
    with _opened(path) as stored:
        return name in stored.files


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with np.load(path, allow_pickle=False) as stored:
            yield stored
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        raise UserError(f"cannot read {path}: {error}; run the evaluation again") from error
