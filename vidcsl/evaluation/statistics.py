"""How far a measured figure can be trusted: every interval, bootstrap and paired test of vidcsl.

What varies is drawn again, and nothing else: videos rather than clips, as the clips of a video
are right and wrong together, and all results of a drawn video at once, as they depend on each
other. scipy's bootstrap draws single values, which would give intervals that are too narrow, so
the draws are made here; tests and closed forms are scipy's. Every draw has a fixed seed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from vidcsl.seeding import numpy_generator

LEVEL = 0.95
DRAWS = 2000
Array = NDArray[np.float64]

# ----------------------------------------------------------------------
# One model.


def wilson_interval(right: int, count: int, *, level: float = LEVEL) -> tuple[float, float]:
    """Interval of an accuracy of which `right` of `count` clips were right.

    Unlike accuracy ± 1.96 standard errors it stays inside [0, 1] and has a width at 0 and 1
    (Wilson, "Probable inference, the law of succession, and statistical inference", JASA 1927).
    Nothing is known of 0 clips: (0, 1).
    """
    if count == 0:
        return 0.0, 1.0
    found = stats.binomtest(right, count).proportion_ci(confidence_level=level, method="wilson")
    return float(found.low), float(found.high)


def quantile_interval(values: ArrayLike, *, level: float = LEVEL) -> tuple[float, float]:
    """The middle `level` of draws of a figure."""
    low, high = np.quantile(np.asarray(values), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def bootstrap_interval(
    right: ArrayLike, *, seed: int = 0, draws: int = DRAWS, level: float = LEVEL
) -> tuple[float, float]:
    """Interval of the mean over videos that are drawn again, with replacement.

    Efron & Tibshirani, "An Introduction to the Bootstrap", 1993.

    Args:
        right: for each video whether it is right, or the ratio of its clips that are: `[n]`.
        seed: of the draws.
        draws: how many samples of n videos.
        level: ratio of the draws that lie within the interval.
    """
    values = np.asarray(right, dtype=np.float64)
    generator = numpy_generator(seed, "bootstrap")
    # A loop rather than one [draws, n] array: evaluation lists have tens of thousands of videos.
    means = [values[generator.integers(0, len(values), len(values))].mean() for _ in range(draws)]
    return quantile_interval(means, level=level)


def proportion_interval(
    values: ArrayLike, *, seed: int = 0, level: float = LEVEL
) -> tuple[float, float]:
    """Interval of an accuracy: the one that every table, chart and file of a run gives.

    Wilson's where each video is right or wrong; the bootstrap over videos where a video counts in
    parts, as its clips are right and wrong together. On values of 0 and 1 alone the bootstrap would
    have no width at accuracies of 0 and 1, and cover 90 % instead of 95 near them.

    Videos count as independent. Where many are cut from one source (groups), they are less than
    that, and intervals of either kind are too narrow.

    Args:
        values: for each video whether it is right, or the ratio of its clips that are: `[n]`.
        seed: of the bootstrap's draws.
        level: how often such an interval holds the truth.
    """
    each = np.asarray(values, dtype=np.float64)
    if np.isin(each, (0.0, 1.0)).all():
        return wilson_interval(int(each.sum()), len(each), level=level)
    return bootstrap_interval(each, seed=seed, level=level)


def bootstrap_means(columns: Mapping[str, ArrayLike], *, draws: int) -> dict[str, Array]:
    """Means of several figures of the same videos, over the same draws of videos.

    Args:
        columns: by name, one value a video, `[n]`.
        draws: how many samples of n videos.

    Returns:
        By name, `[draws]`.
    """
    values = {name: np.asarray(column) for name, column in columns.items()}
    (count,) = {len(column) for column in values.values()}
    times = numpy_generator(0, "bootstrap").multinomial(
        count, np.full(count, 1 / count), size=draws
    )
    return {name: times @ column / count for name, column in values.items()}


def blind_precision(labels: ArrayLike) -> float | None:
    """Precision of flagging pairs of different videos at random: how many share their label.

    Args:
        labels: int `[n]`, -1 where unknown. Only pairs of two known labels count, as nobody knows
            whether others were flagged rightly.

    Returns:
        A ratio; None where fewer than two videos have a label.
    """
    known = np.asarray(labels)
    counts = np.bincount(known[known >= 0])
    total = int(counts.sum())
    return float((counts * (counts - 1)).sum() / (total * (total - 1))) if total > 1 else None


# ----------------------------------------------------------------------
# Several models on the same videos.


@dataclass(frozen=True)
class VideoOutcomes:
    """Which of the attacked videos of one run were predicted correctly.

    Attributes:
        list_id: of the list of test videos; runs with the same one are compared video by video.
        videos: their places in the list, ascending.
        right: for each, whether the model was right when clean ("clean") and under each budget.
    """

    list_id: str
    videos: tuple[int, ...]
    right: Mapping[str, NDArray[np.bool_]]


@dataclass(frozen=True)
class Comparison:
    """One arm against another, video by video.

    Attributes:
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


class PairedOutcomes:
    """Results of several arms on the same videos with the same seeds, under one condition.

    Only seeds that all arms have, on the same videos, are kept.

    Args:
        outcomes: by arm, then by seed.
        condition: "clean" or a budget.
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
        """Accuracy, averaged over seeds."""
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

    def compare(self, arm: str, other: str, draws: Mapping[str, Array]) -> Comparison:
        """`arm` against `other`; `draws` are this object's own."""
        one, two = self.by_video(arm), self.by_video(other)
        pairs = list(zip(self.right[arm], self.right[other], strict=True))
        return Comparison(
            difference=self.mean(arm) - self.mean(other),
            interval=quantile_interval(draws[arm] - draws[other]),
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
    differ on other videos, not whether other training runs would.
    """
    better, worse = int((one > other).sum()), int((one < other).sum())
    if better + worse == 0:
        return 1.0
    if set(np.unique(np.concatenate([one, other]))) <= {0.0, 1.0}:
        return float(stats.binomtest(better, better + worse, 0.5).pvalue)

    def mean_difference(a: Array, b: Array, axis: int) -> Any:
        return (a - b).mean(axis=axis)

    found = stats.permutation_test(
        (one, other),
        mean_difference,
        permutation_type="samples",
        vectorized=True,
        n_resamples=9999,
        batch=1000,
        rng=numpy_generator(0, "study", "randomisation"),
    )
    return float(found.pvalue)


def adjusted(ps: Sequence[float]) -> list[float]:
    """p values after Benjamini and Hochberg (1995): expected ratio of false finds among finds."""
    return [float(p) for p in stats.false_discovery_control(ps)] if ps else []


def gap_closed(robust: float, *, baseline: float, reference: float) -> float | None:
    """(R - R_baseline) / (R_reference - R_baseline); None where the reference is not ahead."""
    return (robust - baseline) / (reference - baseline) if reference > baseline else None


def gap_interval(robust: Array, baseline: Array, reference: Array) -> tuple[float, float] | None:
    """95 % of the gap closed over draws; None where the gap itself is uncertain.

    That is where more than 2.5 % of the draws have no gap: the ratio then has no ends.
    """
    gaps = reference - baseline
    if (gaps <= 0).mean() > (1 - LEVEL) / 2:
        return None
    ahead = gaps > 0
    return quantile_interval((robust - baseline)[ahead] / gaps[ahead])
