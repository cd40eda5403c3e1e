"""`vidcsl compare`: finished runs side by side, whoever planned them.

The arms of a study see the same videos under the same attacks, because they were planned so. Runs
that are only put beside each other may not: then one column would hold numbers of different
things. Here such runs are held apart. Runs of other test lists become settings of their own,
attacks and corruptions that are not the same get tables and columns of their own, and a note names
each difference. What is left is summarised as a study's arms are.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vidcsl.data.lists import shorten
from vidcsl.errors import UserError
from vidcsl.report.summary import attack_title
from vidcsl.studies.analysis import Arms, Record, arms_of, read_record, summarise

SUITES = ("P", "C", "V")


def compare(
    folders: Sequence[Path], *, baseline: str = "", references: Sequence[str] = ()
) -> dict[str, Any]:
    """Finished runs as a study's document, see `studies.page.write_study`.

    Args:
        folders: of the runs; one that is given twice counts once.
        baseline: the arm that the others are tested against; "": none.
        references: arms to close a gap to; they need a baseline.

    Raises:
        UserError: a folder has no results, or no run is named as the baseline or a reference.
    """
    if references and not baseline:
        raise UserError("--reference: a gap has two ends; name the other one by --baseline")
    records = [read_record(path) for path in {each.resolve(): each for each in folders}.values()]
    settings = _by_test_list(records)
    notes: list[str] = []
    if len(settings) > 1:
        notes.append(
            f"The runs were evaluated on {len(settings)} test lists ({'; '.join(settings)}): no "
            "figure of one can be compared with one of another."
        )
    named = {setting: arms_of(runs) for setting, runs in settings.items()}
    known = list(dict.fromkeys(name for arms in named.values() for name in arms))
    for name in filter(None, (baseline, *references)):
        if name not in known:
            raise UserError(f"no run is named {name}; there are {', '.join(known)}")
    found = {}
    for setting, arms in named.items():
        where = f"{setting}: " if len(named) > 1 else ""
        said = [*_differences(arms), *_apart(arms)]
        arms, more = _attacks_apart(arms)
        said += more
        arms, more = _corruptions_apart(arms)
        said += more
        there = baseline if baseline in arms else ""
        if baseline and not there:
            said.append(f"No run of the baseline {baseline} is here, so that nothing is tested.")
        present = [name for name in references if there and name in arms]
        found[setting if len(named) > 1 else ""] = summarise(
            arms, baseline=there, references=present
        )
        notes += [f"{where}{sentence}" for sentence in said]
    return {"name": "Comparison", "question": "", "notes": notes, "settings": found}


# ----------------------------------------------------------------------
# Which runs belong together.


def _by_test_list(records: Sequence[Record]) -> dict[str, list[Record]]:
    """The runs of each test list, by the list in words."""
    of_list: dict[Hashable, list[Record]] = {}
    for record in records:
        lists, data = record.results["lists"], record.results["data"]
        # Results of earlier versions have no digest of the list: its size and classes have to do.
        size = data.get("test_videos"), tuple(map(str, data.get("classes", ())))
        of_list.setdefault(lists.get("test") or size, []).append(record)
    found: dict[str, list[Record]] = {}
    for place, runs in enumerate(of_list.values(), start=1):
        lists, data = runs[0].results["lists"], runs[0].results["data"]
        path = runs[0].options.get("DATA.TEST_LIST") or f"test list {place}"
        title = f"{path}, {lists.get('test_videos', data.get('test_videos', '?'))} videos"
        # Two contents under one path: the list was changed in between.
        title += f" (content {str(lists.get('test'))[:6]})" if title in found else ""
        found[title] = runs
    return found


def _apart(arms: Arms) -> list[str]:
    """A note where one name stands for several arms."""
    names: dict[str, int] = {}
    for runs in arms.values():
        name = str(runs[0].results.get("name"))
        names[name] = names.get(name, 0) + 1
    return [
        f"{count} arms are called {name}; they are told apart by their folders."
        for name, count in names.items()
        if count > 1
    ]


# ----------------------------------------------------------------------
# What differs between runs of one test list.


def _differences(arms: Arms) -> list[str]:
    """A sentence for each difference in what the runs learned from and were measured by."""
    found = []
    for section, key, words in (
        ("lists", "train", "The training lists are not the same"),
        ("clean", "views", "Clean accuracy is not of the same number of test views"),
        ("clean", "train_views", "The probe is not fitted to the same number of training views"),
    ):
        of_value: dict[Hashable, list[str]] = {}
        for name, runs in arms.items():
            seen = {run.results[section].get(key) for run in runs} - {None}
            if seen:
                of_value.setdefault(tuple(sorted(seen)), []).append(name)
        if len(of_value) > 1:
            number = (lambda value: f"{_and(value)} in ") if section == "clean" else lambda _: ""
            each = "; ".join(f"{number(value)}{_and(names)}" for value, names in of_value.items())
            found.append(f"{words}: {each}.")
    return found


def _and(names: Any) -> str:
    return " and ".join(map(str, names)) if len(names) < 3 else shorten([str(n) for n in names])


def _attacks_apart(arms: Arms) -> tuple[dict[str, list[Record]], list[str]]:
    """The arms with attacks of one name that are not the same attack under names of their own."""
    notes, renamed = [], {name: list(runs) for name, runs in arms.items()}
    names = dict.fromkeys(
        a for runs in arms.values() for run in runs for a in run.results["attacks"]
    )
    for attack in names:
        kinds: dict[str, list[str]] = {}
        for name, runs in arms.items():
            for run in runs:
                if attack in run.results["attacks"]:
                    kinds.setdefault(_attack_kind(run, attack), []).append(name)
        if len(kinds) < 2:
            continue
        title = attack_title(attack)
        each = "; ".join(f"{kind} in {_and(list(dict.fromkeys(of)))}" for kind, of in kinds.items())
        notes.append(f"{title} is not the same attack in all runs, so they are apart: {each}.")
        for name, runs in renamed.items():
            renamed[name] = [
                _renamed(run, attack, f"{title}, {_attack_kind(run, attack)}") for run in runs
            ]
    return renamed, notes


def _attack_kind(run: Record, attack: str) -> str:
    """All that makes accuracies under an attack comparable, but its budgets, in words."""
    settings = run.results["attack_settings"].get(attack, {})
    parts = [settings.get("solver") or settings.get("attack") or "settings unknown"]
    parts += [f"{settings['clips']} clips"] if "clips" in settings else []
    parts += [f"{settings['norms']} norms"] if "norms" in settings else []
    return ", ".join(map(str, parts))


def _renamed(run: Record, attack: str, title: str) -> Record:
    sections = ("attacks", "survival", "attack_settings")
    results = dict(run.results)
    for section in sections:
        results[section] = {
            title if name == attack else name: value for name, value in results[section].items()
        }
    outcomes = {title if name == attack else name: each for name, each in run.outcomes.items()}
    return replace(run, results=results, outcomes=outcomes)


def _corruptions_apart(arms: Arms) -> tuple[dict[str, list[Record]], list[str]]:
    """The arms with their corrupted accuracies over what all ran, and other scores told apart."""
    kinds: dict[str, list[str]] = {}
    every: list[Mapping[str, Any]] = []
    for name, runs in arms.items():
        for run in runs:
            if found := run.results["corruptions"]:
                kinds.setdefault(_corruption_kind(found), []).append(name)
                every.append(found)
    if len(kinds) < 2:
        return {name: list(runs) for name, runs in arms.items()}, []
    # The mean is over the same corruptions of the same clips, or it is not shown.
    measured = {(each.get("clips"), each.get("order"), each.get("norms")) for each in every}
    common = [
        (suite, name)
        for suite in SUITES
        for name, row in every[0].get(suite, {}).items()
        if len(measured) == 1
        and all(len(each.get(suite, {}).get(name, ())) == len(row) for each in every)
    ]
    each = "; ".join(f"{_and(list(dict.fromkeys(of)))}: {kind}" for kind, of in kinds.items())
    over = _and([f"{suite}/{name}" for suite, name in common])
    shown = f"means are over what all ran, {over}" if common else "so no means are shown"
    notes = [f"The runs did not see the same corruptions; {shown}. {each}."]
    # Scores of a category are over what of it ran, so each set of corruptions has its columns.
    marks = {kind: f"as {_and(list(dict.fromkeys(of)))}" for kind, of in kinds.items()}

    def cut(run: Record) -> Record:
        found = run.results["corruptions"]
        if not found:
            return run
        rows = {
            suite: {n: row for n, row in found.get(suite, {}).items() if (suite, n) in common}
            for suite in SUITES
        }
        scores, mark = found.get("scores", {}), marks[_corruption_kind(found)]
        suites = {f"{s} ({mark})": groups for s, groups in scores.get("suites", {}).items()}
        changed = {**found, **rows, "scores": {**scores, "suites": suites}}
        return replace(run, results={**run.results, "corruptions": changed})

    return {name: [cut(run) for run in runs] for name, runs in arms.items()}, notes


def _corruption_kind(found: Mapping[str, Any]) -> str:
    """Which corruptions of which clips, in words."""
    rows = {f"{suite}/{n}": row for suite in SUITES for n, row in found.get(suite, {}).items()}
    severities = {len(row) for row in rows.values()}
    parts = [", ".join(sorted(rows))]
    parts += [f"{found['clips']} clips"] if "clips" in found else []
    parts += [f"{_and(sorted(severities))} severities"] if severities not in (set(), {5}) else []
    parts += ["sampled first, then damaged"] if found.get("order") == "clip" else []
    parts += [f"{found['norms']} norms"] if "norms" in found else []
    return ", ".join(parts)
