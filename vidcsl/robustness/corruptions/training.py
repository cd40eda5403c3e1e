"""Corruptions as augmentation of training clips."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vidcsl.robustness.corruptions import corrupt
from vidcsl.seeding import numpy_generator, seed_of


@dataclass(frozen=True, kw_only=True)
class RandomCorruption:
    """Each clip is, with some probability, corrupted in one way; all is drawn by its seed.

    Args:
        names: full names of the corruptions, equally likely.
        severities: from 1 to 5, equally likely.
        probability: of a clip being corrupted at all.
    """

    names: Sequence[str]
    severities: Sequence[int]
    probability: float

    def __call__(self, clips: Tensor, seeds: Sequence[int]) -> Tensor:
        """Clips `[N, 3, T, S, S]` in [0, 1] and N seeds to new clips."""
        pairs = zip(clips.split(1), seeds, strict=True)
        return torch.cat([self._corrupt(clip, seed) for clip, seed in pairs])

    def _corrupt(self, clip: Tensor, seed: int) -> Tensor:
        draws = numpy_generator(seed, "corruption")
        if draws.random() >= self.probability:
            return clip
        name = self.names[int(draws.integers(len(self.names)))]
        severity = self.severities[int(draws.integers(len(self.severities)))]
        own = seed_of(seed, "corruption")
        return corrupt(clip, name, severity=severity, seeds=[own])
