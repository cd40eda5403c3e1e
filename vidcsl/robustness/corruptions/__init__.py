"""Corruptions of clips that real cameras, codecs and networks cause, at five severities."""

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches

import torch
from torch import Tensor

from vidcsl.errors import UserError
from vidcsl.robustness.corruptions.codec import Recovered
from vidcsl.robustness.corruptions.suites import SCORED, SEVERITIES, SUITES, Corruption
from vidcsl.seeding import numpy_generator, seed_of

__all__ = [
    "SCORED",
    "SEVERITIES",
    "SUITES",
    "Corruption",
    "corrupt",
    "corrupt_and_count",
    "find",
    "names",
    "scored_names",
]


def names(suite: str | None = None) -> list[str]:
    """The corruptions as "suite/name", of one suite or of all."""
    return [f"{key}/{name}" for key in SUITES for name in SUITES[key] if suite in (None, key)]


def scored_names(suite: str) -> list[str]:
    """Those that the suite's scores are taken over."""
    return [f"{suite}/{name}" for name, row in SUITES[suite].items() if row.scored]


def find(name: str) -> tuple[str, Corruption]:
    """The full name "suite/name" and the corruption.

    Args:
        name: "P/shot_noise", "C/shot_noise", or a bare "shot_noise", which means suite P's where
            several suites have one.

    Raises:
        UserError: there is no such corruption.
    """
    # Suite P comes last, so that its bare names win.
    known = {key.partition("/")[2]: key for key in reversed(names())} | {k: k for k in names()}
    if name not in known:
        near = get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names())}"
        raise UserError(f"unknown corruption {name!r}; {hint}")
    suite, _, bare = known[name].partition("/")
    return known[name], SUITES[suite][bare]


def corrupt(clips: Tensor, name: str, *, severity: int, seeds: Sequence[int] | Tensor) -> Tensor:
    """Corrupt each clip, the same way for every model, batch, worker, rank and device.

    What happens to clip i depends on its pixels, `name`, `severity` and `seeds[i]` alone. All
    severities of a corruption share the video's random numbers, so that accuracy over severity
    shows the severity, not the luck of the draw.

    Args:
        clips: float32 `[N, 3, T, H, W]` in [0, 1].
        name: see `find`.
        severity: 1 (mild) to 5 (strong); 0 returns `clips`.
        seeds: N whole numbers, one a video.

    Returns:
        Clips of the same shape, type, device and range.

    Raises:
        UserError: unknown name, severity outside 0..5, or a codec that PyAV lacks.
    """
    return corrupt_and_count(clips, name, severity=severity, seeds=seeds)[0]


@torch.no_grad()
def corrupt_and_count(
    clips: Tensor, name: str, *, severity: int, seeds: Sequence[int] | Tensor
) -> tuple[Tensor, Tensor]:
    """As `corrupt`, and in how many frames of each clip nothing could be recovered.

    Only damage to a coded stream makes such frames; the last good one is shown in their place.

    Returns:
        The clips, and the counts, int64 `[N]`.
    """
    full_name, corruption = find(name)
    if severity not in (0, *SEVERITIES):
        raise UserError(f"severity of {full_name} is {severity!r}; it must be one of 0 to 5")
    if clips.ndim != 5 or clips.shape[1] != 3 or clips.dtype != torch.float32:
        raise ValueError(f"clips must be float32 [N, 3, T, H, W], not {clips.dtype} {clips.shape}")
    if len(seeds) != len(clips):
        raise ValueError(f"{len(clips)} clips need as many seeds, not {len(seeds)}")
    if severity == 0 or len(clips) == 0:
        return clips, torch.zeros(len(clips), dtype=torch.int64)
    generators = [numpy_generator(int(seed), full_name) for seed in seeds]
    dense = clips.contiguous()  # what the functions below rely on
    corrupted = corruption.function(dense, generators=generators, **corruption.at(severity))
    if not isinstance(corrupted, Recovered):
        corrupted = Recovered(corrupted, torch.zeros(len(clips), dtype=torch.int64))
    return corrupted.clips.clamp_(0, 1), corrupted.repeated


# ----------------------------------------------------------------------
# Corruptions as augmentation of training clips.


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
