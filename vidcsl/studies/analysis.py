"""Runs side by side: what each found, means over seeds, gaps closed, tests against the baseline."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import yaml

from vidcsl.errors import UserError
from vidcsl.evaluation.statistics import (
    PairedOutcomes,
    VideoOutcomes,
    adjusted,
    gap_closed,
    gap_interval,
)
from vidcsl.report.summary import Tree, by_budget, flat, number, read_results, read_text

# ----------------------------------------------------------------------
# Runs are read in: their results, and the outcome of each video under each attack.


@dataclass(frozen=True)
class Record:
    """One run.

    Attributes:
        outcomes: by attack, where the run's result caches still agree with its results.
        options: of the run's own config, by their dotted keys; empty where it has none.
    """

    seed: int
    folder: Path
    results: Mapping[str, Any]
    outcomes: Mapping[str, VideoOutcomes]
    options: Mapping[str, Any]


Arms = Mapping[str, Sequence[Record]]
"""The runs of each arm, by the arm's name."""


def arms_of(records: Iterable[Record]) -> dict[str, list[Record]]:
    """Runs by their names; runs of one name that were trained alike are the seeds of an arm.

    Others of that name, and further ones of the same seed, are arms told apart by their folders.
    """
    by_name: dict[str, list[list[Record]]] = {}
    for record in records:
        arms = by_name.setdefault(str(record.results.get("name", record.folder.name)), [])
        for arm in arms:
            alike = _learning(arm[0]) == _learning(record)
            if alike and all(each.seed != record.seed for each in arm):
                arm.append(record)
                break
        else:
            arms.append([record])
    found = {}
    for name, arms in by_name.items():
        for arm in arms:
            more = f" and {len(arm) - 1} more" if len(arm) > 1 else ""
            title = f"{name} ({arm[0].folder}{more})" if len(arms) > 1 else name
            found[title] = sorted(arm, key=lambda each: each.seed)
    return found


# Sections of the config that decide what a model learned, but for what may change with the seed
# (another split) or the machine.
_LEARNING = (
    *("PRECISION", "DATA", "SYNTHETIC", "AUGMENT", "MODEL", "METHOD", "LOSS"),
    *("ADVERSARIAL", "FALSE_NEGATIVES", "TRAIN"),
)
_OF_A_SEED = ("DATA.ROOT", "DATA.TRAIN_LIST", "DATA.TEST_LIST", "DATA.WORKERS", "DATA.CACHE")


def _learning(record: Record) -> dict[str, Any]:
    return {
        key: value
        for key, value in record.options.items()
        if key.partition(".")[0] in _LEARNING and key not in _OF_A_SEED
    }


def read_record(folder: Path) -> Record:
    """A run's folder.

    Raises:
        UserError: it has no results, or they or its config are damaged.
    """
    results = read_results(folder / "results.json")
    caches = list(_result_caches(folder / "answers"))
    outcomes = {}
    for attack, accuracies in results["attacks"].items():
        for settings, cached in caches:
            if settings.get("attack") == attack:
                found = _outcomes(settings, cached.get(attack, {}), accuracies)
                if found is not None:
                    outcomes[attack] = found
                    break
    try:
        config = yaml.safe_load(read_text(folder / "config.yaml")) or {}
    except yaml.YAMLError as error:
        raise UserError(f"{folder / 'config.yaml'} is damaged: {error}") from error
    if not isinstance(config, dict):
        raise UserError(f"{folder / 'config.yaml'} is damaged: it holds no keys and values")
    seed = number(results.get("seed"))
    if seed is None:  # a run writes what it read before what it found
        raise UserError(f"{folder} has no results yet")
    return Record(int(seed), folder, results, outcomes, flat(config, joined_by="."))


def _result_caches(folder: Path) -> Iterator[tuple[Tree, Mapping[str, Mapping[int, Any]]]]:
    """(settings, {condition: {video: result}}) of a run's caches, joined over its processes."""
    for key in sorted({path.name.partition(".")[0] for path in folder.glob("*.rank*.jsonl")}):
        settings: Tree = {}
        found: dict[str, dict[int, Any]] = {}
        for path in sorted(folder.glob(f"{key}.rank*.jsonl")):
            for text in read_text(path).splitlines():
                try:
                    line = json.loads(text)
                except ValueError:  # a crash cut it off
                    continue
                if isinstance(line, dict):
                    settings = line.get("settings", settings)
                    if "condition" in line:
                        pairs = zip(line["videos"], line["answers"], strict=True)
                        found.setdefault(line["condition"], {}).update(pairs)
        yield settings, found


def _outcomes(settings: Tree, cached: Mapping[int, Any], accuracies: Tree) -> VideoOutcomes | None:
    """None where the cached results are not those that the accuracies were computed from."""
    # Sorted: processes wrote their parts in any order, and runs are paired place by place.
    by_video = dict(sorted(cached.items()))
    robust = np.array([each["clean"] == each["label"] for each in by_video.values()], dtype=bool)
    right = {"clean": robust}
    for _, eps, accuracy in by_budget(accuracies):
        robust = robust & np.array([each["fooled_at"] != eps for each in by_video.values()], bool)
        # A cache may be older than the results, or of another list: these would pair wrong videos.
        if not by_video or accuracy is None or abs(robust.mean() - accuracy) > 1e-9:
            return None
        right[eps] = robust
    return VideoOutcomes(str(settings.get("videos")), tuple(by_video), right)


# ----------------------------------------------------------------------
# The figures of a run.


def _figure(section: str, key: str) -> Callable[[Tree], float | None]:
    return lambda results: number(results.get(section, {}).get(key))


def mean_corrupted(results: Tree) -> float | None:
    """Mean accuracy over all corruptions that were run, of whichever suite."""
    found = results.get("corruptions", {})
    rows = [row for suite in ("P", "C", "V") for row in found.get(suite, {}).values()]
    known = [[value for value in map(number, row) if value is not None] for row in rows]
    # Severities first: corruptions count alike, however many severities each was run at.
    return fmean(fmean(row) for row in known if row) if any(known) else None


def _retained(results: Tree) -> float | None:
    corrupted, clean = mean_corrupted(results), number(results["corruptions"].get("clean"))
    # A ratio to nothing says nothing: such a run has no figure.
    return None if corrupted is None or not clean else corrupted / clean


def _hours(results: Tree) -> float | None:
    seconds = [number(value) for value in results["cost"].get("seconds", {}).values()]
    known = [value for value in seconds if value is not None]
    return sum(known) / 3600 if known else None


FIGURES: dict[str, Callable[[Tree], float | None]] = {
    "linear_top1": _figure("clean", "linear_top1"),
    "own_head_top1": _figure("clean", "own_head_top1"),
    "knn_top1": _figure("clean", "knn_top1"),
    "retrieval_top1": lambda results: number(results["clean"].get("retrieval", {}).get("R@1")),
    "corrupted": mean_corrupted,
    "corrupted_retained": _retained,
    "alignment": _figure("geometry", "alignment"),
    "uniformity": _figure("geometry", "uniformity"),
    "same_class_similarity": _figure("geometry", "same_class_similarity"),
    "other_class_similarity": _figure("geometry", "other_class_similarity"),
    "margin": _figure("geometry", "margin"),
    "effective_rank": _figure("geometry", "effective_rank"),
    "participation_ratio": _figure("geometry", "participation_ratio"),
    "class_variance": _figure("geometry", "class_variance"),
    "rankme": _figure("geometry", "rankme"),
    "lidar": _figure("geometry", "lidar"),
    "flagged": _figure("false_negatives", "flagged"),
    "removed": _figure("false_negatives", "flagged"),  # its name in earlier versions' study.json
    "precision": _figure("false_negatives", "precision"),
    "recall": _figure("false_negatives", "recall"),
    "hours": _hours,
}


# ----------------------------------------------------------------------
# The figures of a study, as `study.json` holds them.


def summarise(arms: Arms, *, baseline: str, references: Sequence[str]) -> dict[str, Any]:
    """All figures of the arms of one setting.

    Args:
        arms: the runs of each arm.
        baseline: the plain contrastive arm, whose gap is to be closed; "": none, so that nothing
            is tested.
        references: the arms to close the gap to, the main one first; they need a baseline.

    Raises:
        UserError: an arm that is named has no run.
    """
    for arm in filter(None, (baseline, *references)):
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
            if baseline and arm != baseline:
                pair = {name: arms[name] for name in (arm, baseline)}
                entry["against_baseline"] = differences(pair, attack, ["clean", *budgets])
            tests += entry["against_baseline"].values()
    # All tests of a setting are one family: each arm and budget is one more chance of a false find.
    for test, p in zip(tests, adjusted([test["p"] for test in tests]), strict=True):
        test["p_adjusted"] = p
    return {
        "baseline": baseline,
        "references": list(references),
        "options": _options(arms),
        "arms": found,
    }


_NAMES = ("NAME", "SEED", "OUTPUT_DIR")  # what tells runs apart, and changes nothing in them


def _options(arms: Arms) -> dict[str, Any]:
    """What the arms set: `{"differing": {arm: {key: [values]}}, "shared": {key: [values]}}`.

    From each run's own config, so inherited options and defaults are among them, and those of the
    command line. Several values are of several seeds (another split each).
    """
    keys = dict.fromkeys(key for runs in arms.values() for run in runs for key in run.options)
    found: dict[str, dict[str, list[Any]]] = {
        arm: {key: _distinct(run.options.get(key) for run in runs) for key in keys}
        for arm, runs in arms.items()
    }
    first = next(iter(found.values()))
    shared = [key for key in keys if all(each[key] == first[key] for each in found.values())]
    return {
        "differing": {
            arm: {key: each[key] for key in keys if key not in (*shared, *_NAMES)}
            for arm, each in found.items()
        },
        "shared": {key: first[key] for key in shared if key not in _NAMES},
    }


def _distinct(values: Iterable[Any]) -> list[Any]:
    found: list[Any] = []  # not a set: a value may be a list
    for value in values:
        if value not in found:
            found.append(value)
    return found


def _arm(records: Sequence[Record]) -> dict[str, Any]:
    figures = {
        name: _spread({each.seed: figure(each.results) for each in records})
        for name, figure in FIGURES.items()
    }
    corruptions: dict[str, dict[int, float | None]] = {}  # by suite and category: "P temporal"
    for record in records:
        suites = record.results["corruptions"].get("scores", {}).get("suites", {})
        for suite, groups in suites.items():
            for group, scores in groups.items():
                row = corruptions.setdefault(f"{suite} {group}", {})
                row[record.seed] = number(scores.get("accuracy"))
    attacks = dict.fromkeys(name for record in records for name in record.results["attacks"])
    return {
        "seeds": [record.seed for record in records],
        "folders": [str(record.folder) for record in records],
        "figures": {name: spread for name, spread in figures.items() if spread},
        "corruptions": {name: s for name, row in corruptions.items() if (s := _spread(row))},
        "attacks": {name: _attack(name, records) for name in attacks},
    }


def _attack(name: str, records: Sequence[Record]) -> dict[str, Any]:
    curves = {each.seed: each.results["attacks"].get(name, {}) for each in records}
    survival = {each.seed: each.results["survival"].get(name, {}) for each in records}
    settings = {each.seed: each.results["attack_settings"].get(name, {}) for each in records}
    known = {eps: 0.0 for curve in curves.values() for eps in curve}
    return {
        "words": sorted({str(each["attack"]) for each in settings.values() if "attack" in each}),
        "clips": sorted({int(each["clips"]) for each in settings.values() if "clips" in each}),
        "clean": _spread({seed: number(each.get("clean")) for seed, each in settings.items()}),
        "budgets": {
            eps: {
                "accuracy": _spread({s: number(curve.get(eps)) for s, curve in curves.items()}),
                "survival": _spread({s: number(curve.get(eps)) for s, curve in survival.items()}),
            }
            for _, eps, _ in by_budget(known)
        },
    }


def _spread(values: Mapping[int, float | None]) -> dict[str, Any] | None:
    """A figure over seeds: its mean, and its standard deviation (n - 1) of two seeds or more."""
    known = {seed: value for seed, value in values.items() if value is not None}
    if not known:
        return None
    deviation = stdev(known.values()) if len(known) > 1 else None
    return {"mean": fmean(known.values()), "deviation": deviation, "values": known}


def gaps_closed(arms: Arms, attack: str, budgets: Sequence[str]) -> dict[str, dict[str, Any]]:
    """By budget, how far the first arm closes the gap from the second to the third.

    `value` of the means over the seeds that all three have, None where undefined; `by_seed`;
    `paired`, whether the outcomes of these seeds' videos are known; and, where they are,
    `interval`, see `statistics.gap_interval`.
    """
    found = {}
    for eps in budgets:
        curves = []
        for records in arms.values():
            of_seed = {
                each.seed: each.results["attacks"].get(attack, {}).get(eps) for each in records
            }
            numbers = {seed: number(accuracy) for seed, accuracy in of_seed.items()}
            curves.append({seed: one for seed, one in numbers.items() if one is not None})
        seeds = sorted(set.intersection(*map(set, curves)))
        if not seeds:
            continue
        own, low, high = (fmean(curve[seed] for seed in seeds) for curve in curves)
        value = gap_closed(own, baseline=low, reference=high)
        by_seed = {
            seed: gap_closed(one, baseline=two, reference=three)
            for seed in seeds
            for one, two, three in [[curve[seed] for curve in curves]]
        }
        paired = _paired(arms, attack, eps)
        interval = None
        # An interval of fewer seeds than the value is of would not belong to it.
        known = paired is not None and paired.seeds == seeds
        if paired and known and value is not None:
            draws = paired.draws()
            interval = gap_interval(*(draws[name] for name in arms))
        found[eps] = {"value": value, "interval": interval, "by_seed": by_seed, "paired": known}
    return found


def differences(arms: Arms, attack: str, conditions: Sequence[str]) -> dict[str, dict[str, Any]]:
    """By condition ("clean" or a budget), the first arm against the second, video by video."""
    found = {}
    arm, other = arms
    for condition in conditions:
        paired = _paired(arms, attack, condition)
        if paired and paired.seeds:
            found[condition] = asdict(paired.compare(arm, other, paired.draws()))
    return found


def _paired(arms: Arms, attack: str, condition: str) -> PairedOutcomes | None:
    outcomes = {
        name: {each.seed: each.outcomes[attack] for each in records if attack in each.outcomes}
        for name, records in arms.items()
    }
    return PairedOutcomes(outcomes, condition=condition) if all(outcomes.values()) else None
