"""Accuracy under corruption: what a model says of each video under each condition."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from vidcsl.engine.distributed import World
from vidcsl.engine.ledger import Ledger
from vidcsl.robustness.clips import Clips
from vidcsl.robustness.corruptions import SEVERITIES, corrupt_and_count, find

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


def answered(ledger: Ledger, names: Sequence[str]) -> set[int]:
    """The videos of which the ledger knows all answers."""
    every = [set(ledger.answers(key)) for key, _, _ in conditions(names)]
    return set.intersection(*every)


def corruption_table(
    model: nn.Module,
    batches: Iterable[Clips],
    names: Sequence[str],
    *,
    world: World,
    ledger: Ledger | None = None,
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
        key: dict(ledger.answers(key)) if ledger else {} for key, _, _ in conditions(names)
    }
    for batch in batches:
        for key, name, severity in conditions(names):
            if all(video in known[key] for video in batch.videos):
                continue
            found = judge(model, batch, name, severity)
            known[key] |= dict(zip(batch.videos, found, strict=True))
            if ledger is not None:
                ledger.record(key, batch.videos, found)
        advance(len(batch))
    everyone: dict[str, dict[int, Answer]] = {key: {} for key in known}
    for part in world.collect(known):
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
