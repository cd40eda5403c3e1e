"""Runs side by side: what they answered, gaps closed, paired tests."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from vidcsl.errors import UserError
from vidcsl.report.summary import Tree, by_budget, number, read_results, read_text
from vidcsl.seeding import numpy_generator

# ----------------------------------------------------------------------
# What each run found: its results, and what became of each video under each attack.


@dataclass(frozen=True)
class VideoOutcomes:
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
    outcomes: Mapping[str, VideoOutcomes]


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


def _outcomes(answers: _Answers, attack: str, accuracies: Tree) -> VideoOutcomes | None:
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
    return VideoOutcomes(str(answers.settings.get("videos")), tuple(told), right)


# ----------------------------------------------------------------------
# How far means over seeds and videos can be trusted.

STUDY_DRAWS = 2000
STUDY_LEVEL = 0.95
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Spread:
    """A figure over seeds: mean, and standard deviation (n - 1) where there are two or more."""

    values: Mapping[int, float]

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return fmean(self.values.values())

    @property
    def deviation(self) -> float | None:
        """None of a single seed."""
        return stdev(self.values.values()) if len(self.values) > 1 else None


def gap_closed(robust: float, *, baseline: float, reference: float) -> float | None:
    """(R - R_baseline) / (R_reference - R_baseline); None where the reference is not ahead."""
    return (robust - baseline) / (reference - baseline) if reference > baseline else None


@dataclass(frozen=True)
class Comparison:
    """One arm against another, video by video.

    Args:
        difference: of their mean accuracies.
        interval: 95 %, of draws of seeds and of videos.
        p: two-sided, see `paired_p`.
        better, worse: how many (seed, video) only this arm, and only the other, has right.
        videos: how many different ones.
    """

    difference: float
    interval: tuple[float, float]
    p: float
    better: int
    worse: int
    videos: int


class Paired:
    """What several arms made of the same videos with the same seeds, under one condition.

    Args:
        outcomes: by arm, then by seed.
        condition: "clean" or a budget.

    Only seeds that all arms have, on the same videos, are kept.
    """

    def __init__(
        self, outcomes: Mapping[str, Mapping[int, VideoOutcomes]], *, condition: str
    ) -> None:
        common = set.intersection(*(set(runs) for runs in outcomes.values()))
        one = next(iter(outcomes.values()))
        self.seeds = [
            seed
            for seed in sorted(common)
            if len({(runs[seed].list_id, runs[seed].videos) for runs in outcomes.values()}) == 1
            and all(condition in runs[seed].right for runs in outcomes.values())
        ]
        self.lists = [(one[seed].list_id, one[seed].videos) for seed in self.seeds]
        self.right: dict[str, list[Array]] = {
            arm: [runs[seed].right[condition].astype(float) for seed in self.seeds]
            for arm, runs in outcomes.items()
        }

    def mean(self, arm: str) -> float:
        """Mean over seeds of the share of videos that are right."""
        return fmean(float(right.mean()) for right in self.right[arm])

    def draws(self, *, count: int = STUDY_DRAWS) -> dict[str, Array]:
        """For each arm its mean in `count` draws of seeds and videos, with replacement.

        Seeds and, of each list, videos are drawn once for all arms; seeds that share a list share
        the drawn videos (a bootstrap of crossed factors: Owen, "The pigeonhole bootstrap", Annals
        of Applied Statistics 2007). With few seeds intervals are too narrow rather than too wide.
        """
        generator = numpy_generator(0, "study", "bootstrap")
        runs = len(self.seeds)
        weights = generator.multinomial(runs, [1 / runs] * runs, size=count) / runs  # [draws, S]
        videos = {
            each: generator.multinomial(n, np.full(n, 1 / n), size=count) / n  # [draws, n]
            for each in dict.fromkeys(self.lists)
            if (n := len(each[1]))
        }
        return {
            arm: np.sum(
                [weights[:, s] * (videos[self.lists[s]] @ each) for s, each in enumerate(right)],
                axis=0,
            )
            for arm, right in self.right.items()
        }

    def by_video(self, arm: str) -> Array:
        """For each different video the mean over its seeds."""
        sums: dict[tuple[str, int], list[float]] = {}
        for (name, videos), right in zip(self.lists, self.right[arm], strict=True):
            for video, value in zip(videos, right, strict=True):
                sums.setdefault((name, video), []).append(float(value))
        return np.array([fmean(values) for values in sums.values()])


def compare(paired: Paired, arm: str, other: str, draws: Mapping[str, Array]) -> Comparison:
    """`arm` against `other`; `draws` are the pairs' own."""
    one, two = paired.by_video(arm), paired.by_video(other)
    pairs = list(zip(paired.right[arm], paired.right[other], strict=True))
    return Comparison(
        difference=paired.mean(arm) - paired.mean(other),
        interval=_interval(draws[arm] - draws[other]),
        p=paired_p(one, two),
        better=int(sum((a > b).sum() for a, b in pairs)),
        worse=int(sum((a < b).sum() for a, b in pairs)),
        videos=len(one),
    )


def paired_p(one: Array, other: Array) -> float:
    """Two-sided p of the same mean, from paired values of independent videos.

    Where each is 0 or 1, McNemar's exact test: of the videos on which the two differ, half should
    favour either (McNemar, Psychometrika 1947). Means over several seeds: the signs of the videos'
    differences are drawn anew (Fisher's randomisation test). It asks whether these trained models
    differ on other videos, not whether other trainings would.
    """
    differences = one - other
    better, worse = int((differences > 0).sum()), int((differences < 0).sum())
    if better + worse == 0:
        return 1.0
    if set(np.unique(np.concatenate([one, other]))) <= {0.0, 1.0}:
        return float(stats.binomtest(better, better + worse, 0.5).pvalue)
    found = stats.permutation_test(
        (one, other),
        lambda a, b, axis: (a - b).mean(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=9999,
        batch=1000,
        rng=numpy_generator(0, "study", "randomisation"),
    )
    return float(found.pvalue)


def adjusted(ps: Sequence[float]) -> list[float]:
    """p values after Benjamini and Hochberg (1995): expected share of false finds among finds."""
    return [float(p) for p in stats.false_discovery_control(ps)] if ps else []


def gap_interval(robust: Array, baseline: Array, reference: Array) -> tuple[float, float] | None:
    """95 % of the gap closed over draws; None where the gap itself is not sure to be there.

    It is not where more than 2.5 % of the draws have none: the ratio then has no ends.
    """
    gaps = reference - baseline
    if (gaps <= 0).mean() > (1 - STUDY_LEVEL) / 2:
        return None
    there = gaps > 0
    return _interval((robust - baseline)[there] / gaps[there])


def _interval(values: Array) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - STUDY_LEVEL) / 2, (1 + STUDY_LEVEL) / 2])
    return float(low), float(high)


# ----------------------------------------------------------------------
# Arms held against each other, under one attack: gaps closed, and differences video by video.


def gaps_closed(arms: Arms, attack: str, budgets: Sequence[str]) -> dict[str, dict[str, Any]]:
    """By budget, how far the first arm closes the gap from the second to the third.

    `value` of the means over the seeds that all three have, None where undefined; `by_seed`; and
    `interval`, see `statistics.gap_interval`, where the outcomes of these seeds' videos are known.
    """
    found = {}
    for eps in budgets:
        curves = [_accuracies(arms, name, attack, eps) for name in arms]
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
        if paired and paired.seeds == seeds and value is not None:
            draws = paired.draws()
            interval = gap_interval(*(draws[name] for name in arms))
        found[eps] = {"value": value, "interval": interval, "by_seed": by_seed}
    return found


def differences(arms: Arms, attack: str, conditions: Sequence[str]) -> dict[str, dict[str, Any]]:
    """By condition ("clean" or a budget), the first arm against the second, video by video."""
    found = {}
    arm, other = arms
    for condition in conditions:
        paired = _paired(arms, attack, condition)
        if paired and paired.seeds:
            found[condition] = asdict(compare(paired, arm, other, paired.draws()))
    return found


def _accuracies(arms: Arms, name: str, attack: str, eps: str) -> Mapping[int, float]:
    curves = {each.seed: each.results["attacks"].get(attack, {}) for each in arms[name]}
    return {
        seed: value
        for seed, curve in curves.items()
        if (value := number(curve.get(eps))) is not None
    }


def _paired(arms: Arms, attack: str, condition: str) -> Paired | None:
    outcomes = {
        name: {each.seed: each.outcomes[attack] for each in records if attack in each.outcomes}
        for name, records in arms.items()
    }
    return Paired(outcomes, condition=condition) if all(outcomes.values()) else None


# ----------------------------------------------------------------------
# The figures of a study, as `study.json` holds them.


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
