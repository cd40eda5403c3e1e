"""What each run found: its results, and what became of each video under each attack."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vidcsl.errors import UserError
from vidcsl.report.files import read_results, read_text
from vidcsl.report.summary import Tree, by_budget, number


@dataclass(frozen=True)
class Outcomes:
    """What became of the attacked videos under one attack.

    Args:
        list_id: of the list of test videos; runs with the same one are compared video by video.
        videos: their places in the list, ascending.
        right: for each, whether the model was right when clean ("clean") and under each budget.
    """

    list_id: str
    videos: tuple[int, ...]
    right: Mapping[str, NDArray[np.bool_]]


@dataclass(frozen=True)
class Record:
    """One run. `outcomes` by attack, where the run's ledgers still hold what its results say."""

    seed: int
    folder: Path
    results: Mapping[str, Any]
    outcomes: Mapping[str, Outcomes]


Arms = Mapping[str, Sequence[Record]]
"""The runs of each arm, by the arm's name."""


def read_record(folder: Path) -> Record:
    """A run's folder.

    Raises:
        UserError: it has no results, or they are damaged.
    """
    results = read_results(folder / "results.json")
    answers = list(_answers(folder / "answers"))
    outcomes = {}
    for attack, accuracies in results["attacks"].items():
        found = (_outcomes(each, attack, accuracies) for each in answers)
        told = next((each for each in found if each is not None), None)
        if told is not None:
            outcomes[attack] = told
    return Record(int(number(results.get("seed")) or 0), folder, results, outcomes)


def read_arms(folders: Sequence[Path]) -> dict[str, list[Record]]:
    """Runs by the name that each was given; runs of one name are the seeds of an arm.

    Raises:
        UserError: a folder has no results, or they are damaged, or two have one name and seed.
    """
    arms: dict[str, list[Record]] = {}
    for folder in folders:
        record = read_record(folder)
        name = str(record.results.get("name", folder.name))
        same = [each for each in arms.get(name, ()) if each.seed == record.seed]
        if same:
            raise UserError(
                f"{folder} and {same[0].folder} are both {name}, seed {record.seed}: evaluate one "
                "of them with another NAME"
            )
        arms.setdefault(name, []).append(record)
    return {name: sorted(records, key=lambda each: each.seed) for name, records in arms.items()}


@dataclass(frozen=True)
class _Answers:
    settings: Tree
    by_condition: Mapping[str, Mapping[int, Any]]


def _answers(folder: Path) -> Iterator[_Answers]:
    """The ledgers of a run, each joined over its processes' files."""
    keys = sorted({path.name.partition(".")[0] for path in folder.glob("*.rank*.jsonl")})
    for key in keys:
        settings: Tree = {}
        found: dict[str, dict[int, Any]] = {}
        for path in sorted(folder.glob(f"{key}.rank*.jsonl")):
            for line in _whole_lines(path):
                settings = line.get("settings", settings)
                if "condition" in line:
                    pairs = zip(line["videos"], line["answers"], strict=True)
                    found.setdefault(line["condition"], {}).update(pairs)
        yield _Answers(settings, found)


def _whole_lines(path: Path) -> Iterator[dict[str, Any]]:
    """One that is cut off, or not of this form, says nothing."""
    for text in read_text(path).splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict):
            yield line


def _outcomes(answers: _Answers, attack: str, accuracies: Tree) -> Outcomes | None:
    """None where these answers are not those that the results were made from."""
    if answers.settings.get("attack") != attack:
        return None
    told = dict(sorted(answers.by_condition.get(attack, {}).items()))
    budgets = [(key, accuracy) for _, key, accuracy in by_budget(accuracies)]
    standing = np.array([one["clean"] == one["label"] for one in told.values()], dtype=bool)
    right = {"clean": standing}
    for eps, accuracy in budgets:
        standing = standing & np.array([one["fooled_at"] != eps for one in told.values()], bool)
        if not told or accuracy is None or abs(standing.mean() - accuracy) > 1e-9:
            return None
        right[eps] = standing
    return Outcomes(str(answers.settings.get("videos")), tuple(told), right)
