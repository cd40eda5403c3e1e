"""Attacks at growing budgets: how robust each video is, and the accuracy curve that follows."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from vidcsl.distributed import DistributedContext
from vidcsl.robustness.targets import Clips, Target
from vidcsl.run_folder import ResultCache


class Attack(Protocol):
    """An attack at one budget."""

    def __call__(
        self,
        model: nn.Module,
        clips: Tensor,
        labels: Tensor,
        seeds: Sequence[int],
        start: Tensor | None = None,
    ) -> Tensor:
        """Adversarial clips `[N, ...]`; `start` holds clips from which the search may begin."""


@dataclass(frozen=True)
class VideoRobustness:
    """How robust one video is. Plain values, as the result cache stores them.

    Args:
        label: the true class.
        clean: the class predicted without an attack.
        fooled_at: the smallest budget that fooled the model; None: robust to all of them, or
            misclassified already when clean.
        became: the class predicted then.
        frame_rms: root mean square of the perturbation in each frame, in 1/255, under that budget
            (the largest one where none fooled the model; empty where it was misclassified clean).
        seconds: that its attacks took: the time of its batch, divided by the videos in it.
    """

    label: int
    clean: int
    fooled_at: str | None = None
    became: int | None = None
    frame_rms: list[float] = field(default_factory=list)
    seconds: float = field(default=0.0, compare=False)


@dataclass(frozen=True)
class Curve:
    """The robustness of all videos, and the numbers that follow from it.

    Args:
        budgets: names of the budgets, smallest first.
        outcomes: by video, the same on all processes.
    """

    budgets: Sequence[str]
    outcomes: Mapping[int, VideoRobustness]

    def over(self, videos: Sequence[int]) -> "Curve":
        """The curve of some of the videos."""
        return replace(self, outcomes={v: self.outcomes[v] for v in videos if v in self.outcomes})

    @property
    def clips(self) -> int:
        """How many there are."""
        return len(self.outcomes)

    @property
    def clean(self) -> int:
        """How many are classified correctly without an attack."""
        return sum(outcome.clean == outcome.label for outcome in self.outcomes.values())

    def robust(self, eps: str) -> list[VideoRobustness]:
        """Those correct when clean, and not fooled by a budget or a smaller one.

        A fooled video stays fooled, as a larger budget allows all that a smaller one does: the
        curve falls monotonically and is the pointwise worst case over the budgets so far.
        """
        fatal = set(self.budgets[: self.budgets.index(eps) + 1])
        return [
            outcome
            for outcome in self.outcomes.values()
            if outcome.clean == outcome.label and outcome.fooled_at not in fatal
        ]

    def accuracy(self) -> dict[str, float]:
        """Robust accuracy by budget: a ratio of all clips."""
        return {eps: len(self.robust(eps)) / self.clips for eps in self.budgets}

    def survival(self) -> dict[str, float]:
        """The ratio of the clips correct when clean that are robust, by budget; empty if none."""
        return {eps: len(self.robust(eps)) / self.clean for eps in self.budgets if self.clean}

    def seconds(self) -> float:
        """What all attacks took, over all processes."""
        return sum(outcome.seconds for outcome in self.outcomes.values())

    def by_class(self, classes: int) -> dict[str, list[int]]:
        """Counts by class: `clips`, `clean` (correct when clean), and robust under each budget.

        `mistaken_for` is the class that fooled clips of this one are most often predicted as, or
        -1; the smaller label among equals, so that the order of the videos plays no part.
        """
        everyone = list(self.outcomes.values())
        clean = [outcome for outcome in everyone if outcome.clean == outcome.label]
        predicted: list[Counter[int]] = [Counter() for _ in range(classes)]
        for outcome in clean:
            if outcome.became is not None:
                predicted[outcome.label][outcome.became] += 1

        def count(outcomes: Iterable[VideoRobustness]) -> list[int]:
            return np.bincount([each.label for each in outcomes], minlength=classes).tolist()

        return {
            "clips": count(everyone),
            "clean": count(clean),
            **{eps: count(self.robust(eps)) for eps in self.budgets},
            "mistaken_for": [
                max(counts, key=lambda label: (counts[label], -label), default=-1)
                for counts in predicted
            ],
        }

    def frame_rms(self) -> dict[str, list[float]]:
        """Mean over clips of the perturbation's RMS in each frame, in 1/255, by fatal budget.

        Where videos have different numbers of frames, that of the shortest, evenly resampled.
        """
        last = self.budgets[-1] if self.budgets else None
        means = {}
        for eps in self.budgets:
            rows = [
                outcome.frame_rms
                for outcome in self.outcomes.values()
                if outcome.frame_rms and (outcome.fooled_at or last) == eps
            ]
            if rows:
                at = np.linspace(0, 1, min(map(len, rows)))
                even = [np.interp(at, np.linspace(0, 1, len(row)), row) for row in rows]
                means[eps] = [round(float(value), 4) for value in np.mean(even, axis=0)]
        return means


def attack_curve(
    target: Target,
    batches: Iterable[Clips],
    attacks: Mapping[str, Attack],
    *,
    distributed: DistributedContext,
    result_cache: ResultCache | None = None,
    condition: str = "attack",
    advance: Callable[[int], None] = lambda _: None,
) -> Curve:
    """Attack every clip at growing budgets until it is fooled.

    Args:
        target: what is attacked, see `vidcsl.robustness.targets`.
        batches: those of this process.
        attacks: by budget, smallest first; each must allow all that the ones before it do.
        distributed: the processes.
        result_cache: keeps the result of each video, so that a stopped run resumes.
        condition: the results' name in the cache.
        advance: called with the number of clips done.
    """
    known = {} if result_cache is None else result_cache.results(condition)
    outcomes = {video: VideoRobustness(**stored) for video, stored in known.items()}
    for batch in batches:
        # Known or not, a batch is attacked whole: its composition decides the last bit of sums, and
        # a resumed run must give what an undisturbed one gives.
        if any(video not in outcomes for video in batch.videos):
            started = time.perf_counter()
            found = attack_batch(target(batch.view).eval(), batch, attacks)
            each = round((time.perf_counter() - started) / len(batch), 4)
            found = [replace(outcome, seconds=each) for outcome in found]
            outcomes |= dict(zip(batch.videos, found, strict=True))
            if result_cache is not None:
                # Batch by batch, so that a kill costs one of them.
                result_cache.record(condition, batch.videos, [asdict(outcome) for outcome in found])
        advance(len(batch))
    everyone: dict[int, VideoRobustness] = {}
    for part in distributed.collect(outcomes):
        everyone |= part
    return Curve(tuple(attacks), dict(sorted(everyone.items())))


def attack_batch(
    model: nn.Module, batch: Clips, attacks: Mapping[str, Attack]
) -> list[VideoRobustness]:
    """How robust each clip of a batch is.

    A clip is attacked only while it is robust, and each attack begins at what the smaller budget
    found for it, which a larger one allows.

    Args:
        model: pixels of the batch -> logits, on their device, in eval mode.
        batch: the clips.
        attacks: by budget, smallest first.
    """
    labels, clean = batch.labels.tolist(), predict(model, batch.clips)
    outcomes = [VideoRobustness(*both) for both in zip(labels, clean.tolist(), strict=True)]
    rows, start = (clean == batch.labels).nonzero()[:, 0], None
    for eps, attack in attacks.items():
        if len(rows) == 0:
            break
        robust = batch.take(rows)
        attacked = attack(model, robust.clips, robust.labels, robust.seeds, start)
        predicted = predict(model, attacked)
        fooled = predicted != robust.labels
        sizes = frame_rms(robust.clips, attacked).tolist()
        found = zip(rows.tolist(), predicted.tolist(), fooled.tolist(), sizes, strict=True)
        for row, became, is_fooled, rms in found:
            outcomes[row] = replace(
                outcomes[row],
                fooled_at=eps if is_fooled else None,
                became=became if is_fooled else None,
                frame_rms=[round(value, 4) for value in rms],
            )
        # The next attack begins at what this one found, which a larger budget allows.
        rows, start = rows[~fooled], attacked[~fooled]
    return outcomes


@torch.inference_mode()
def predict(model: nn.Module, clips: Tensor) -> Tensor:
    """The predicted class of each clip, int64 `[N]`."""
    return model(clips.clone()).argmax(dim=1)  # a copy: many models normalise in place


def frame_rms(clean: Tensor, adversarial: Tensor) -> Tensor:
    """Root mean square of the difference in each frame, in 1/255: `[N, 3, T, H, W]` -> `[N, T]`."""
    return 255 * (adversarial - clean).square().mean(dim=(1, 3, 4)).sqrt()
