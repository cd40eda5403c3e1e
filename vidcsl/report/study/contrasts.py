"""Arms held against each other, under one attack: gaps closed, and differences video by video."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from statistics import fmean
from typing import Any

from vidcsl.report.study.records import Arms
from vidcsl.report.study.statistics import Paired, compare, gap_closed, gap_interval
from vidcsl.report.summary import number


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
