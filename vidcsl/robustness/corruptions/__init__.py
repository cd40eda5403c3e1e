"""Corruptions that real cameras, codecs and networks cause, at five severities.

`suites.py` names them and holds their strengths; every other file holds the functions of one kind:
`photometric.py` (noise, exposure, colour), `blur.py`, `weather.py`, `camera.py`, `temporal.py`,
`codec.py` (compression and damaged streams). `draws.py` draws their random numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial

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
    "corrupt_and_inspect",
    "find",
    "names",
    "scored_names",
]


ROUNDING = 1e-3


def names(suite: str | None = None) -> list[str]:
    """The corruptions as "suite/name", of one suite or of all."""
    return [f"{key}/{name}" for key in SUITES for name in SUITES[key] if suite in (None, key)]


def scored_names(suite: str) -> list[str]:
    """The corruptions that count in the suite's scores."""
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


def corrupt(
    clips: Tensor, name: str, *, severity: int, seeds: Sequence[int] | Tensor | None = None
) -> Tensor:
    """Corrupt each clip, the same way for every model, batch, worker, rank and device.

    What happens to clip i depends on its pixels, `name`, `severity` and `seeds[i]` alone. All
    severities of a corruption share the video's random numbers, so that accuracy over severity
    shows the severity, not the luck of the draw.

    Args:
        clips: float32 `[N, 3, T, H, W]` in [0, 1].
        name: see `find`.
        severity: 1 (mild) to 5 (strong); 0 returns `clips`.
        seeds: `[N]` integers, one per clip (its index in the data set, say). By default the
            position in the batch.

    Returns:
        Clips of the same shape, type, device and range.

    Raises:
        UserError: unknown name, severity outside 0..5, clips or seeds that do not fit, or a codec
            that PyAV lacks.
    """
    return corrupt_and_count(clips, name, severity=severity, seeds=seeds)[0]


def corrupt_and_count(
    clips: Tensor, name: str, *, severity: int, seeds: Sequence[int] | Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """As `corrupt`, with the number of frames in each clip that could not be recovered.

    Only damage to a coded stream makes such frames; the last good one is shown in their place.

    Returns:
        The clips, and the counts, int64 `[N]`.
    """
    return corrupt_and_inspect(clips, name, severity=severity, seeds=seeds)[:2]


@torch.no_grad()
def corrupt_and_inspect(
    clips: Tensor,
    name: str,
    *,
    severity: int,
    seeds: Sequence[int] | Tensor | None = None,
    frame_rate: float = 0,
) -> Recovered:
    """As `corrupt_and_count`, and whether each clip's coded stream was hit at all, see `Recovered`.

    Corruptions of pixels hit every clip.

    Args:
        clips, name, severity, seeds: as for `corrupt`.
        frame_rate: of the clips, in frames per second; 0: the one that each corruption assumes.
    """
    full_name, corruption = find(name)
    if severity not in (0, *SEVERITIES):
        raise UserError(f"severity of {full_name} is {severity!r}; it must be one of 0 to 5")
    _check_clips(clips)
    seeds = range(len(clips)) if seeds is None else [int(seed) for seed in seeds]
    if len(seeds) != len(clips):
        raise UserError(f"{len(clips)} clips need as many seeds, not {len(seeds)}")
    if severity == 0 or len(clips) == 0:
        nothing = torch.zeros(len(clips), dtype=torch.int64)
        return Recovered(clips, nothing, nothing.bool())
    generators = [numpy_generator(seed, full_name) for seed in seeds]
    dense = clips.contiguous()  # the corruptions read memory in this order
    # A severity may come from a table of floats: 3.0 is as good as 3.
    parameters = corruption.at(int(severity))
    function = corruption.function
    if frame_rate > 0 and isinstance(function, partial) and "source_rate" in function.keywords:
        parameters["source_rate"] = max(1, round(frame_rate))
    corrupted = function(dense, generators=generators, **parameters)
    if not isinstance(corrupted, Recovered):
        none = torch.zeros(len(clips), dtype=torch.int64)
        corrupted = Recovered(corrupted, none, torch.ones(len(clips), dtype=torch.bool))
    return corrupted._replace(clips=corrupted.clips.clamp_(0, 1))


def _check_clips(clips: Tensor) -> None:
    if not isinstance(clips, Tensor):
        raise UserError(f"corruptions need a tensor of clips, not {type(clips).__name__}")
    if clips.ndim != 5 or clips.shape[1] != 3 or clips.dtype != torch.float32:
        found = f"{clips.dtype} {list(clips.shape)}"
        raise UserError(f"corruptions need float32 clips [N, 3, T, H, W], not {found}")
    if clips.numel() == 0:
        return
    low, high = clips.min().item(), clips.max().item()
    # Resizing may leave [0, 1] by a rounding error. NaN fails both comparisons.
    if not (low >= -ROUNDING and high <= 1 + ROUNDING):
        raise UserError(
            f"corruptions need clips in [0, 1], not {low:g} to {high:g}: corrupt pixels, then "
            "normalise"
        )


@dataclass(frozen=True, kw_only=True)
class RandomCorruption:
    """Augmentation: corrupts each clip in one way with some probability, drawn by its seed.

    Args:
        names: full names of the corruptions, equally likely.
        severities: from 1 to 5, equally likely.
        probability: chance that a clip is corrupted at all.
    """

    names: Sequence[str]
    severities: Sequence[int]
    probability: float

    def __call__(self, clips: Tensor, seeds: Sequence[int]) -> Tensor:
        """Clips `[N, 3, T, S, S]` in [0, 1] and N seeds to new clips."""
        changed = []
        for clip, seed in zip(clips.split(1), seeds, strict=True):
            draws = numpy_generator(seed, "corruption")
            if draws.random() < self.probability:
                name = self.names[int(draws.integers(len(self.names)))]
                severity = self.severities[int(draws.integers(len(self.severities)))]
                own = seed_of(seed, "corruption")
                clip = corrupt(clip, name, severity=severity, seeds=[own])
            changed.append(clip)
        return torch.cat(changed)
