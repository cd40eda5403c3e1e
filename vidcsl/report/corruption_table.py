"""Corruption results of several models side by side, as a Markdown table."""

from collections.abc import Mapping
from typing import Any

from vidcsl.report.summary import percent

Section = Mapping[str, Any]


def compare_corruptions(sections: Mapping[str, Section]) -> str:
    """One row a model: clean accuracy, then for each suite its mean, gammas and categories.

    Accuracies in per cent, the mean with its interval. The relative gamma of a suite is also its
    rPC, and its mean accuracy its mPC.

    Args:
        sections: `corruptions` of results.json, by the model's name.
    """
    suites = {
        suite: list(groups)
        for section in sections.values()
        for suite, groups in section["scores"]["suites"].items()
    }
    header = ["model", "videos", "clean"]
    for suite, groups in suites.items():
        header += [f"{suite}: mean (95 %)", f"{suite}: γᵃ", f"{suite}: γʳ"]
        header += [f"{suite}: {group}" for group in groups if group != "all"]
    rows = [_row(name, section, suites) for name, section in sections.items()]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [header, ["---"] * len(header), *rows])


def _row(name: str, section: Section, suites: Mapping[str, list[str]]) -> list[str]:
    cells = [name, str(section["clips"]), percent(section["clean"])]
    for suite, groups in suites.items():
        found = section["scores"]["suites"][suite]
        whole = found["all"]
        low, high = whole["interval"]["accuracy"]
        cells += [f"{percent(whole['accuracy'])} ({percent(low)} to {percent(high)})"]
        cells += [percent(whole["gamma_a"]), percent(whole["gamma_r"])]
        cells += [percent(found[group]["accuracy"]) for group in groups if group != "all"]
    return cells
