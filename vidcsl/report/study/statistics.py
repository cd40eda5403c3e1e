"""How far means over seeds and videos can be trusted."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from vidcsl.report.study.records import Outcomes
from vidcsl.seeding import numpy_generator

DRAWS = 2000
LEVEL = 0.95
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

    def __init__(self, outcomes: Mapping[str, Mapping[int, Outcomes]], *, condition: str) -> None:
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

    def draws(self, *, count: int = DRAWS) -> dict[str, Array]:
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
    if (gaps <= 0).mean() > (1 - LEVEL) / 2:
        return None
    there = gaps > 0
    return _interval((robust - baseline)[there] / gaps[there])


def _interval(values: Array) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
