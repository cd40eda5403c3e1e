"""Accuracy under every corruption and severity, and the published scores of robustness."""

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from vidcsl.distributed import DistributedContext
from vidcsl.errors import UserError
from vidcsl.evaluation.statistics import (
    bootstrap_means,
    proportion_interval,
    quantile_interval,
)
from vidcsl.robustness.corruptions import SEVERITIES, corrupt_and_inspect, find
from vidcsl.robustness.corruptions.codec import Recovered
from vidcsl.robustness.corruptions.suites import SCORED, SUITES
from vidcsl.robustness.corruptions.windows import acts_over_time
from vidcsl.robustness.targets import Clips
from vidcsl.run_folder import ResultCache

# ----------------------------------------------------------------------
# A model's predictions for each video under each condition.

CLEAN = "clean"
DAMAGES_STREAM = ("C/bit_error", "C/packet_loss", "V/nal_loss")  # some clips escape unhurt

Prediction = Sequence[int]
"""(label, predicted class, frames that could not be recovered, whether the stream was damaged)."""


@dataclass(frozen=True)
class CorruptionTable:
    """A model's predictions for each video, clean and under each corruption and severity.

    Args:
        names: full names of the corruptions.
        predictions: by condition and video, the same on all processes.
    """

    names: Sequence[str]
    predictions: Mapping[str, Mapping[int, Prediction]]

    def over(self, videos: Sequence[int]) -> "CorruptionTable":
        """The table of some videos, without those that lack a prediction under some condition."""
        complete = set(videos).intersection(*self.predictions.values())
        kept = [video for video in videos if video in complete]
        return replace(
            self,
            predictions={c: {v: found[v] for v in kept} for c, found in self.predictions.items()},
        )

    @property
    def videos(self) -> list[int]:
        """Their indices in the list."""
        return list(self.predictions[CLEAN])

    def correct_when_clean(self) -> NDArray[np.bool_]:
        """Which videos are classified correctly without corruption, `[videos]`."""
        return self._correct(CLEAN)

    def correct(self, name: str) -> NDArray[np.bool_]:
        """Which videos are classified correctly under a corruption, `[videos, severities]`."""
        return np.stack([self._correct(condition(name, s)) for s in SEVERITIES], axis=1)

    def accuracies(self) -> dict[str, dict[str, list[float]]]:
        """Accuracy by suite, corruption and severity."""
        found: dict[str, dict[str, list[float]]] = {}
        for name in self.names:
            suite, _, bare = name.partition("/")
            found.setdefault(suite, {})[bare] = self.correct(name).mean(axis=0).tolist()
        return found

    def repeated(self) -> dict[str, list[float]]:
        """Mean number of frames per clip that could not be recovered, by severity.

        Only corruptions that damage a coded stream lose frames; all others are left out.
        """
        found = {}
        for name in self.names:
            rows = [self.predictions[condition(name, s)].values() for s in SEVERITIES]
            counts = [float(np.mean([frames for _, _, frames, _ in row])) for row in rows]
            if any(counts):
                found[name] = counts
        return found

    def damaged(self) -> dict[str, list[float]]:
        """Ratio of the clips whose coded stream was hit at all, by severity.

        Of corruptions that damage a coded stream; all others change every clip.
        """
        found = {}
        for name in self.names:
            rows = [self.predictions[condition(name, s)].values() for s in SEVERITIES]
            ratios = [float(np.mean([hit for _, _, _, hit in row])) for row in rows]
            if name in DAMAGES_STREAM:
                found[name] = ratios
        return found

    def _correct(self, key: str) -> NDArray[np.bool_]:
        return np.array([label == found for label, found, _, _ in self.predictions[key].values()])


def condition(name: str, severity: int) -> str:
    """The key of a prediction: corruption, severity and strength.

    With the strength, a changed table of severities does not find the old results.
    """
    return f"{name} {severity} {json.dumps(find(name)[1].at(severity))}"


def conditions(names: Sequence[str]) -> Iterator[tuple[str, str, int]]:
    """(condition, name, severity) of every condition, clean first."""
    yield CLEAN, "", 0
    for name in names:
        for severity in SEVERITIES:
            yield condition(name, severity), name, severity


def finished_videos(result_cache: ResultCache, names: Sequence[str]) -> set[int]:
    """The videos whose predictions are cached under all conditions."""
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
    """A model's predictions for every clip, clean and under every corruption and severity.

    Args:
        model: clips -> logits, on the device of `distributed`, in eval mode.
        batches: this process's batches; each is decoded once for all conditions.
        names: full names, as `vidcsl.robustness.corruptions.find` returns them.
        distributed: the processes.
        result_cache: stores the predictions, so that a stopped run continues where it was.
        advance: called with the number of clips that are done.
    """
    known: dict[str, dict[int, Prediction]] = {
        key: dict(result_cache.results(key)) if result_cache else {}
        for key, _, _ in conditions(names)
    }
    for batch in batches:
        for key, name, severity in conditions(names):
            # A batch with one missing video is computed as a whole: the rest of a batch would be
            # rounded differently.
            if all(video in known[key] for video in batch.videos):
                continue
            found = predict(model, batch, name, severity)
            known[key] |= dict(zip(batch.videos, found, strict=True))
            if result_cache is not None:
                result_cache.record(key, batch.videos, found)
        advance(len(batch))
    merged: dict[str, dict[int, Prediction]] = {key: {} for key in known}
    for part in distributed.collect(known):
        for key, found in part.items():
            merged[key] |= found
    # By video, so that the table is the same for any number of processes.
    return CorruptionTable(names, {key: dict(sorted(row.items())) for key, row in merged.items()})


@torch.inference_mode()
def predict(model: nn.Module, batch: Clips, name: str, severity: int) -> list[Prediction]:
    """The model's predictions for a batch under a corruption; severity 0: clean."""
    clips, repeated, damaged = corrupted(batch, name, severity)
    predicted = model(clips.clone()).argmax(dim=1)  # a copy: many models normalise in place
    columns = (batch.labels.tolist(), predicted.tolist(), repeated.tolist(), damaged.tolist())
    return [list(row) for row in zip(*columns, strict=True)]


def corrupted(batch: Clips, name: str, severity: int) -> Recovered:
    """The corrupted clips of a batch; where time matters, of its videos at full rate if known."""
    if severity and batch.windows is not None and acts_over_time(name):
        pairs = zip(batch.windows, batch.seeds, strict=True)
        each = [window.corrupt(name, severity=severity, seed=seed) for window, seed in pairs]
        joined = Recovered(*(torch.cat(parts) for parts in zip(*each, strict=True)))
        return joined._replace(clips=joined.clips.to(batch.clips))
    known = name or "P/jpeg"  # of clean clips any will do
    return corrupt_and_inspect(batch.clips, known, severity=severity, seeds=batch.seeds)


# ----------------------------------------------------------------------
# Scores: pure functions of accuracies in [0, 1].

Ratios = TypeVar("Ratios", float, NDArray[np.floating])

Accuracies = Mapping[str, Sequence[float]]
"""By corruption, the accuracy at each severity."""


def gamma_absolute(clean: Ratios, perturbed: Ratios) -> Ratios:
    """1 - (clean - perturbed): 1 if no accuracy is lost (Schiappa et al., CVPR 2023)."""
    return 1 - (clean - perturbed)


def gamma_relative(clean: float, perturbed: float) -> float | None:
    """1 - (clean - perturbed) / clean (Schiappa et al., CVPR 2023); None if clean is 0."""
    return 1 - (clean - perturbed) / clean if clean > 0 else None


def mean_performance(accuracies: Accuracies) -> float:
    """Accuracy averaged over severities, then corruptions: mPC (Yi et al., NeurIPS 2021)."""
    return fmean(fmean(severities) for severities in accuracies.values())


def relative_performance(clean: float, accuracies: Accuracies) -> float | None:
    """Mean accuracy under corruption over the clean accuracy: rPC; None if clean is 0."""
    return mean_performance(accuracies) / clean if clean > 0 else None


def robustness_scores(clean: float, suites: Mapping[str, Accuracies]) -> dict[str, Any]:
    """The mean over all corruptions that ran, the four published scores, and what they are over.

    The gammas belong to suite P, mPC and rPC to suite C. A published score is one of a whole suite:
    where a corruption or a severity of it did not run, it is None. Corruptions that do not count in
    a suite's scores (bit rates in suite C) are left out of everything.

    Args:
        clean: clean accuracy of the same clips.
        suites: `{"P": {"jpeg": [accuracy at each severity], ...}, "C": {...}}`, one or more.

    Returns:
        `mean`: `{"accuracy", "retained" (of the clean accuracy; None where that is 0)}` over all
        corruptions alike, of whichever suite (left out where none ran); `gamma_a`, `gamma_r`,
        `mPC`, `rPC` (None where undefined); and `over`, what ran of each suite: `{"P":
        {"corruptions", "published", "severities"}, ...}`.

    Raises:
        UserError: an accuracy outside [0, 1], a corruption with none, or an unknown name.
    """
    _check(clean, suites)
    run = {suite: counted for suite in suites if (counted := scored(suites[suite], suite=suite))}
    over = {
        suite: {
            "corruptions": len(counted),
            "published": SCORED[suite],
            "severities": min(len(severities) for severities in counted.values()),
        }
        for suite, counted in run.items()
    }

    def whole(suite: str) -> float | None:
        complete = {"corruptions": SCORED[suite], "severities": len(SEVERITIES)}
        ran = complete.items() <= over.get(suite, {}).items()
        return mean_performance(run[suite]) if ran else None

    perturbed, corrupted = whole("P"), whole("C")
    scores: dict[str, Any] = {
        "gamma_a": None if perturbed is None else gamma_absolute(clean, perturbed),
        "gamma_r": None if perturbed is None else gamma_relative(clean, perturbed),
        "mPC": corrupted,
        "rPC": None if corrupted is None else relative_performance(clean, run["C"]),
        "over": over,
    }
    if run:
        rows = {f"{s}/{name}": row for s, counted in run.items() for name, row in counted.items()}
        retained = relative_performance(clean, rows)
        scores["mean"] = {"accuracy": mean_performance(rows), "retained": retained}
    return scores


def scored(accuracies: Accuracies, *, suite: str) -> dict[str, Sequence[float]]:
    """The corruptions that count in a suite's scores."""
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
    return {
        category: mean_scores(clean, mean_performance({name: accuracies[name] for name in names}))
        for category, names in by_category(accuracies, suite=suite).items()
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
    """Bootstrap intervals over videos of mean accuracies and their gammas (Efron, 1979).

    All predictions for a video are drawn together, because they depend on each other: an interval
    from the number of predictions alone would be far too narrow.

    Args:
        clean: which videos are classified correctly without corruption, `[videos]`.
        corrupted: by name of the mean, the ratio of conditions under which each video is
            classified correctly, `[videos]`.
        confidence: ratio of the resamples inside the interval.
        resamples: number of resampled lists of videos, drawn by a fixed seed.

    Returns:
        `{name: {"accuracy": [low, high], "gamma_a": ..., "gamma_r": ...}}`; a score that is
        undefined in all resamples is left out.
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
        if np.isin(corrupted[name], (0.0, 1.0)).all():  # all draws may be alike, see there
            intervals[name]["accuracy"] = list(
                proportion_interval(corrupted[name], level=confidence)
            )
    return intervals


def _check(clean: float, suites: Mapping[str, Accuracies]) -> None:
    if not 0 <= clean <= 1:
        raise UserError(f"clean accuracy is {clean}; accuracies are ratios in [0, 1]")
    for suite, accuracies in suites.items():
        unknown = [suite] if suite not in SUITES else sorted({*accuracies} - {*SUITES[suite]})
        if unknown:
            raise UserError(f"unknown suite or corruption {unknown[0]!r} among the accuracies")
        for name, severities in accuracies.items():
            if not severities or not all(0 <= accuracy <= 1 for accuracy in severities):
                raise UserError(
                    f"accuracies of {suite}/{name} are {list(severities)}; "
                    "expected one ratio in [0, 1] per severity"
                )
