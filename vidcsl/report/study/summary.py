"""The figures of a study, as `study.json` holds them."""

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

from vidcsl.errors import UserError
from vidcsl.report.study.contrasts import differences, gaps_closed
from vidcsl.report.study.records import Arms, Record
from vidcsl.report.study.statistics import Spread, adjusted
from vidcsl.report.summary import Tree, by_budget, number


def _of(section: str, key: str) -> Callable[[Tree], float | None]:
    return lambda results: number(results.get(section, {}).get(key))


def mean_corrupted(results: Tree) -> float | None:
    """Mean accuracy over all corruptions that were run, of whichever suite."""
    found = results.get("corruptions", {})
    rows = [row for suite in ("P", "C", "V") for row in found.get(suite, {}).values()]
    known = [[value for value in map(number, row) if value is not None] for row in rows]
    return fmean(fmean(row) for row in known if row) if any(known) else None


def _retained(results: Tree) -> float | None:
    corrupted, clean = mean_corrupted(results), number(results["corruptions"].get("clean"))
    return None if corrupted is None or not clean else corrupted / clean


FIGURES: dict[str, Callable[[Tree], float | None]] = {
    "linear_top1": _of("clean", "linear_top1"),
    "own_head_top1": _of("clean", "own_head_top1"),
    "knn_top1": _of("clean", "knn_top1"),
    "retrieval_top1": lambda results: number(results["clean"].get("retrieval", {}).get("R@1")),
    "corrupted": mean_corrupted,
    "corrupted_retained": _retained,
    "alignment": _of("geometry", "alignment"),
    "uniformity": _of("geometry", "uniformity"),
    "same_class_similarity": _of("geometry", "same_class_similarity"),
    "other_class_similarity": _of("geometry", "other_class_similarity"),
    "margin": _of("geometry", "margin"),
    "effective_rank": _of("geometry", "effective_rank"),
    "removed": _of("false_negatives", "removed"),
    "precision": _of("false_negatives", "precision"),
    "recall": _of("false_negatives", "recall"),
    "hours": lambda results: _hours(results["cost"]),
}


def summarise(arms: Arms, *, baseline: str, references: Sequence[str]) -> dict[str, Any]:
    """All figures of the arms of one setting.

    Args:
        arms: the runs of each arm.
        baseline: the contrastive arm without removal.
        references: the arms towards which the gap is to be closed, the main one first.

    Raises:
        UserError: an arm that is named has no run.
    """
    for arm in (baseline, *references):
        if arm not in arms:
            raise UserError(f"no run is named {arm}; there are {', '.join(sorted(arms))}")
    found = {arm: _arm(records) for arm, records in arms.items()}
    tests: list[dict[str, Any]] = []
    for arm, figures in found.items():
        for attack, entry in figures["attacks"].items():
            budgets = list(entry["budgets"])
            entry["gap_closed"] = {
                reference: gaps_closed(
                    {name: arms[name] for name in (arm, baseline, reference)}, attack, budgets
                )
                for reference in references
                if arm not in (baseline, references[0], reference)
            }
            entry["against_baseline"] = {}
            if arm != baseline:
                pair = {name: arms[name] for name in (arm, baseline)}
                entry["against_baseline"] = differences(pair, attack, ["clean", *budgets])
            tests += entry["against_baseline"].values()
    for test, p in zip(tests, adjusted([test["p"] for test in tests]), strict=True):
        test["p_adjusted"] = p
    return {"baseline": baseline, "references": list(references), "arms": found}


def _arm(records: Sequence[Record]) -> dict[str, Any]:
    attacks = dict.fromkeys(name for record in records for name in record.results["attacks"])
    return {
        "seeds": [record.seed for record in records],
        "folders": [str(record.folder) for record in records],
        "figures": {
            name: spread
            for name, figure in FIGURES.items()
            if (spread := _spread({each.seed: figure(each.results) for each in records}))
        },
        "corruptions": _corruptions(records),
        "attacks": {name: _attack(name, records) for name in attacks},
    }


def _corruptions(records: Sequence[Record]) -> dict[str, Any]:
    """Accuracy by suite and category, such as "P temporal"."""
    found: dict[str, dict[int, float | None]] = {}
    for record in records:
        suites = record.results["corruptions"].get("scores", {}).get("suites", {})
        for suite, groups in suites.items():
            for group, scores in groups.items():
                row = found.setdefault(f"{suite} {group}", {})
                row[record.seed] = number(scores.get("accuracy"))
    return {name: spread for name, row in found.items() if (spread := _spread(row))}


def _attack(name: str, records: Sequence[Record]) -> dict[str, Any]:
    curves = {each.seed: each.results["attacks"].get(name, {}) for each in records}
    kept = {each.seed: each.results["survival"].get(name, {}) for each in records}
    settings = {each.seed: each.results["attack_settings"].get(name, {}) for each in records}
    joined = {eps: 0.0 for curve in curves.values() for eps in curve}
    budgets = [eps for _, eps, _ in by_budget(joined)]
    return {
        "words": sorted({str(each["attack"]) for each in settings.values() if "attack" in each}),
        "clips": sorted({int(each["clips"]) for each in settings.values() if "clips" in each}),
        "clean": _spread({seed: number(each.get("clean")) for seed, each in settings.items()}),
        "budgets": {
            eps: {
                "accuracy": _spread({s: number(curve.get(eps)) for s, curve in curves.items()}),
                "survival": _spread({s: number(curve.get(eps)) for s, curve in kept.items()}),
            }
            for eps in budgets
        },
    }


def _spread(values: Mapping[int, float | None]) -> dict[str, Any] | None:
    known = {seed: value for seed, value in values.items() if value is not None}
    if not known:
        return None
    spread = Spread(known)
    return {"mean": spread.mean, "deviation": spread.deviation, "values": known}


def _hours(cost: Tree) -> float | None:
    known = [value for value in map(number, cost.get("seconds", {}).values()) if value is not None]
    return sum(known) / 3600 if known else None
