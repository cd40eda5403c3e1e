"""Accuracy under every corruption, and the scores made of it."""

import json
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from vidcsl.distributed import DistributedContext
from vidcsl.errors import UserError
from vidcsl.evaluation.statistics import bootstrap_means, quantile_interval
from vidcsl.robustness.corruptions import SEVERITIES, corrupt_and_count, find
from vidcsl.robustness.corruptions.suites import SCORED, SUITES
from vidcsl.robustness.targets import Clips
from vidcsl.run_folder import ResultCache

# ----------------------------------------------------------------------
# Robustness in a few numbers. Pure functions of accuracies in [0, 1].

Shares = TypeVar("Shares", float, NDArray[np.floating])

# The accuracies of each corruption, one a severity.
Accuracies = Mapping[str, Sequence[float]]


def gamma_absolute(clean: Shares, perturbed: Shares) -> Shares:
    """1 - (clean - perturbed): 1 where nothing is lost (Schiappa et al., CVPR 2023)."""
    return 1 - (clean - perturbed)


def gamma_relative(clean: float, perturbed: float) -> float | None:
    """1 - (clean - perturbed) / clean (Schiappa et al., CVPR 2023); None where clean is 0."""
    return 1 - (clean - perturbed) / clean if clean > 0 else None


def mean_performance(accuracies: Accuracies) -> float:
    """Accuracy averaged over severities, then corruptions: mPC (Yi et al., NeurIPS 2021)."""
    return fmean(fmean(severities) for severities in accuracies.values())


def relative_performance(clean: float, accuracies: Accuracies) -> float | None:
    """Mean accuracy under corruption over the clean one: rPC; None where clean is 0."""
    return mean_performance(accuracies) / clean if clean > 0 else None


def robustness_scores(clean: float, suites: Mapping[str, Accuracies]) -> dict[str, Any]:
    """The four published scores, and over what they were taken.

    The gammas belong to suite P, mPC and rPC to suite C. Where a score's own suite was not run,
    the score is taken over another one, and `over` says so: such a number must not be set beside
    published ones. Corruptions that a suite's scores do not count (bit rates in suite C) are
    left out.

    Args:
        clean: clean accuracy of the same clips.
        suites: `{"P": {"jpeg": [accuracy at each severity], ...}, "C": {...}}`, any may lack.

    Returns:
        `gamma_a`, `gamma_r`, `mPC`, `rPC` (None where undefined), and `over`:
        `{"gamma": {"suite", "corruptions", "published", "severities"}, "mPC": {...}}`.
        A suite is complete where `corruptions == published` and `severities == 5`.

    Raises:
        UserError: an accuracy outside [0, 1], a corruption with none, or an unknown name.
    """
    _check(clean, suites)
    run = {suite: counted for suite in suites if (counted := scored(suites[suite], suite=suite))}
    if not run:
        return dict.fromkeys(("gamma_a", "gamma_r", "mPC", "rPC")) | {"over": {}}
    gamma_suite, mean_suite = (_first(order, run) for order in ("PCV", "CPV"))
    perturbed = mean_performance(run[gamma_suite])
    return {
        "gamma_a": gamma_absolute(clean, perturbed),
        "gamma_r": gamma_relative(clean, perturbed),
        "mPC": mean_performance(run[mean_suite]),
        "rPC": relative_performance(clean, run[mean_suite]),
        "over": {
            "gamma": _coverage(gamma_suite, run[gamma_suite]),
            "mPC": _coverage(mean_suite, run[mean_suite]),
        },
    }


def scored(accuracies: Accuracies, *, suite: str) -> dict[str, Sequence[float]]:
    """Those of a suite's corruptions that its scores count."""
    return {name: row for name, row in accuracies.items() if SUITES[suite][name].scored}


def by_category(names: Iterable[str], *, suite: str) -> dict[str, list[str]]:
    """A suite's corruptions by category (noise, blur, ...)."""
    members: dict[str, list[str]] = defaultdict(list)
    for name in names:
        members[SUITES[suite][name].category].append(name)
    return dict(members)


def category_scores(
    clean: float, accuracies: Accuracies, *, suite: str
) -> dict[str, dict[str, float | None]]:
    """Mean accuracy and gammas of each category (noise, blur, ...) of one suite.

    Returns:
        `{category: {"accuracy", "gamma_a", "gamma_r"}}`.
    """
    _check(clean, {suite: accuracies})
    groups = by_category(accuracies, suite=suite)
    return {
        category: mean_scores(clean, mean_performance({name: accuracies[name] for name in names}))
        for category, names in groups.items()
    }


def mean_scores(clean: float, accuracy: float) -> dict[str, float | None]:
    """A mean accuracy under corruption with its gammas."""
    return {
        "accuracy": accuracy,
        "gamma_a": gamma_absolute(clean, accuracy),
        "gamma_r": gamma_relative(clean, accuracy),
    }


def bootstrap_intervals(
    clean: NDArray[np.bool_],
    corrupted: Mapping[str, NDArray[np.floating]],
    *,
    confidence: float = 0.95,
    resamples: int = 1000,
) -> dict[str, dict[str, list[float]]]:
    """Where the scores of means over corruptions lie, were other videos drawn (Efron, 1979).

    All of a video's answers are drawn together, as they depend on each other: an interval from
    the number of answers alone would be far too narrow.

    Args:
        clean: which videos are right without corruption, `[videos]`.
        corrupted: by name of the mean, the share of conditions under which each video is right.
        confidence: share of the resamples inside the interval.
        resamples: lists of as many videos, drawn with replacement by a fixed seed.

    Returns:
        `{name: {"accuracy": [low, high], "gamma_a": ..., "gamma_r": ...}}`; a score that is not
        defined in any resample is left out.
    """
    draws = bootstrap_means({**corrupted, CLEAN: clean}, draws=resamples)
    plain = draws[CLEAN]
    defined = plain > 0
    intervals: dict[str, dict[str, list[float]]] = {}
    for name in corrupted:
        accuracy = draws[name]
        scores = {
            "accuracy": accuracy,
            "gamma_a": gamma_absolute(plain, accuracy),
            "gamma_r": 1 - (plain - accuracy)[defined] / plain[defined],
        }
        intervals[name] = {
            key: list(quantile_interval(values, level=confidence))
            for key, values in scores.items()
            if len(values)
        }
    return intervals


def _first(order: str, run: Collection[str]) -> str:
    return next(suite for suite in order if suite in run)


def _coverage(suite: str, accuracies: Accuracies) -> dict[str, str | int]:
    return {
        "suite": suite,
        "corruptions": len(accuracies),
        "published": SCORED[suite],
        "severities": min(len(severities) for severities in accuracies.values()),
    }


def _check(clean: float, suites: Mapping[str, Accuracies]) -> None:
    if not 0 <= clean <= 1:
        raise UserError(f"clean accuracy is {clean}; accuracies are shares in [0, 1]")
    for suite, accuracies in suites.items():
        unknown = [suite] if suite not in SUITES else sorted({*accuracies} - {*SUITES[suite]})
        if unknown:
            raise UserError(f"unknown suite or corruption {unknown[0]!r} among the accuracies")
        for name, severities in accuracies.items():
            if not severities or not all(0 <= accuracy <= 1 for accuracy in severities):
                raise UserError(
                    f"accuracies of {suite}/{name} are {list(severities)}; "
                    "expected one share in [0, 1] a severity"
                )


# ----------------------------------------------------------------------
# Accuracy under corruption: what a model says of each video under each condition.

CLEAN = "clean"

Answer = Sequence[int]
"""(true class, class named, frames in which a decoder recovered nothing): plain, for a ledger."""


@dataclass(frozen=True)
class CorruptionTable:
    """What a model said of each video, clean and under each corruption and severity.

    Args:
        names: full names of the corruptions.
        answers: by condition and video, the same on all processes.
    """

    names: Sequence[str]
    answers: Mapping[str, Mapping[int, Answer]]

    def over(self, videos: Sequence[int]) -> "CorruptionTable":
        """The table of those of the videos that have all answers."""
        whole = set(videos).intersection(*self.answers.values())
        kept = [video for video in videos if video in whole]
        return replace(
            self,
            answers={c: {v: found[v] for v in kept} for c, found in self.answers.items()},
        )

    @property
    def videos(self) -> list[int]:
        """Those that have answers."""
        return list(self.answers[CLEAN])

    def right_when_clean(self) -> NDArray[np.bool_]:
        """Which videos are right without corruption, `[videos]`."""
        return self._right(CLEAN)

    def right(self, name: str) -> NDArray[np.bool_]:
        """Which videos are right under a corruption, `[videos, severities]`."""
        return np.stack([self._right(condition(name, s)) for s in SEVERITIES], axis=1)

    def accuracies(self) -> dict[str, dict[str, list[float]]]:
        """Accuracy by suite, corruption and severity."""
        found: dict[str, dict[str, list[float]]] = {}
        for name in self.names:
            suite, _, bare = name.partition("/")
            found.setdefault(suite, {})[bare] = self.right(name).mean(axis=0).tolist()
        return found

    def repeated(self) -> dict[str, list[float]]:
        """Frames of a clip in which nothing was recovered, on average, by corruption; where any."""
        found = {}
        for name in self.names:
            counts = [
                float(np.mean([answer[2] for answer in self.answers[condition(name, s)].values()]))
                for s in SEVERITIES
            ]
            if any(counts):
                found[name] = counts
        return found

    def _right(self, key: str) -> NDArray[np.bool_]:
        return np.array([label == named for label, named, _ in self.answers[key].values()])


def condition(name: str, severity: int) -> str:
    """What an answer is filed under: corruption, severity, and the strength it stands for."""
    return f"{name} {severity} {json.dumps(find(name)[1].at(severity))}"


def conditions(names: Sequence[str]) -> Iterator[tuple[str, str, int]]:
    """(condition, name, severity), clean first."""
    yield CLEAN, "", 0
    for name in names:
        for severity in SEVERITIES:
            yield condition(name, severity), name, severity


def answered(result_cache: ResultCache, names: Sequence[str]) -> set[int]:
    """The videos of which the ledger knows all answers."""
    every = [set(result_cache.results(key)) for key, _, _ in conditions(names)]
    return set.intersection(*every)


def corruption_table(
    model: nn.Module,
    batches: Iterable[Clips],
    names: Sequence[str],
    *,
    distributed: DistributedContext,
    result_cache: ResultCache | None = None,
    advance: Callable[[int], None] = lambda _: None,
) -> CorruptionTable:
    """Ask a model for every clip, clean and under every corruption and severity.

    Args:
        model: clips -> logits, on the world's device, in eval mode.
        batches: this process's share; each is decoded once for all conditions.
        names: full names, as `vidcsl.robustness.corruptions.find` gives them.
        world: the processes.
        ledger: remembers the answers, so that a run that was stopped goes on.
        advance: called with the number of clips done.
    """
    known: dict[str, dict[int, Answer]] = {
        key: dict(result_cache.results(key)) if result_cache else {}
        for key, _, _ in conditions(names)
    }
    for batch in batches:
        for key, name, severity in conditions(names):
            if all(video in known[key] for video in batch.videos):
                continue
            found = judge(model, batch, name, severity)
            known[key] |= dict(zip(batch.videos, found, strict=True))
            if result_cache is not None:
                result_cache.record(key, batch.videos, found)
        advance(len(batch))
    everyone: dict[str, dict[int, Answer]] = {key: {} for key in known}
    for part in distributed.collect(known):
        for key, found in part.items():
            everyone[key] |= found
    return CorruptionTable(names, {key: dict(sorted(a.items())) for key, a in everyone.items()})


@torch.inference_mode()
def judge(model: nn.Module, batch: Clips, name: str, severity: int) -> list[Answer]:
    """The model's answers for a batch under a corruption; severity 0: clean."""
    clips, repeated = batch.clips, torch.zeros(len(batch), dtype=torch.int64)
    if severity:
        clips, repeated = corrupt_and_count(clips, name, severity=severity, seeds=batch.seeds)
    named = model(clips).argmax(dim=1)
    columns = (batch.labels.tolist(), named.tolist(), repeated.tolist())
    return [list(answer) for answer in zip(*columns, strict=True)]
