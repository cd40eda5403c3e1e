"""Accuracy over growing budgets, and attacked clips as files."""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import av
import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vidcsl.distributed import DistributedContext
from vidcsl.errors import UserError
from vidcsl.io import replacing
from vidcsl.robustness.targets import Clips, Target
from vidcsl.run_folder import ResultCache

# ----------------------------------------------------------------------
# Attacks on a list of videos at growing budgets: what became of each, and what follows from it.


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
class Outcome:
    """What became of one video. Plain values, for a ledger.

    Args:
        label, clean: the true class, and the one named without an attack.
        fooled_at: the smallest budget that fooled the model; None: right under all of them, or
            wrong already when clean.
        became: the class named then.
        frame_rms: root mean square of the perturbation in each frame, in 1/255, under that budget
            (the largest one where none fooled the model; empty where it was wrong when clean).
        seconds: that its attacks took, its share of its batch's.
    """

    label: int
    clean: int
    fooled_at: str | None = None
    became: int | None = None
    frame_rms: list[float] = field(default_factory=list)
    seconds: float = field(default=0.0, compare=False)


@dataclass(frozen=True)
class Curve:
    """What became of all videos, and the numbers that follow from it.

    Args:
        budgets: names of the budgets, smallest first.
        outcomes: by video, the same on all processes.
    """

    budgets: Sequence[str]
    outcomes: Mapping[int, Outcome]

    def over(self, videos: Sequence[int]) -> "Curve":
        """The curve of some of the videos."""
        return replace(self, outcomes={v: self.outcomes[v] for v in videos if v in self.outcomes})

    @property
    def clips(self) -> int:
        """How many there are."""
        return len(self.outcomes)

    @property
    def clean(self) -> int:
        """How many are right without attack."""
        return sum(outcome.clean == outcome.label for outcome in self.outcomes.values())

    def right(self, eps: str) -> list[Outcome]:
        """Those that are right under a budget: when clean, and not fooled by it or a smaller one.

        Being fooled is for good, as a larger budget allows all that a smaller one does: the curve
        falls monotonically and is the pointwise worst case over the budgets so far.
        """
        fatal = set(self.budgets[: self.budgets.index(eps) + 1])
        return [
            outcome
            for outcome in self.outcomes.values()
            if outcome.clean == outcome.label and outcome.fooled_at not in fatal
        ]

    def accuracy(self) -> dict[str, float]:
        """Share of all clips that are right under attack, by budget."""
        return {eps: len(self.right(eps)) / self.clips for eps in self.budgets}

    def survival(self) -> dict[str, float]:
        """Share of the clips right when clean that are still right, by budget; empty if none."""
        return {eps: len(self.right(eps)) / self.clean for eps in self.budgets if self.clean}

    def seconds(self) -> float:
        """What all attacks took, over all processes."""
        return sum(outcome.seconds for outcome in self.outcomes.values())

    def by_class(self, classes: int) -> dict[str, list[int]]:
        """Counts by class: `clips`, `clean` (right when clean), and right under each budget.

        `mistaken_for` is the class that a fooled clip of this one is most often taken for, or -1.
        """
        everyone = list(self.outcomes.values())
        clean = [outcome for outcome in everyone if outcome.clean == outcome.label]
        taken: list[Counter[int]] = [Counter() for _ in range(classes)]
        for outcome in clean:
            if outcome.became is not None:
                taken[outcome.label][outcome.became] += 1
        return {
            "clips": _count(everyone, classes),
            "clean": _count(clean, classes),
            **{eps: _count(self.right(eps), classes) for eps in self.budgets},
            "mistaken_for": [_most_common(counts) for counts in taken],
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
                means[eps] = _mean_profile(rows)
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
    """Attack every clip at growing budgets until it falls.

    Args:
        target: what is attacked, see `vidcsl.robustness.targets`.
        batches: this process's share.
        attacks: by budget, smallest first; each must allow all that the ones before it do.
        world: the processes.
        ledger: remembers what became of each video, so that a run that was stopped goes on.
        condition: under which name it does.
        advance: called with the number of clips done.
    """
    known = {} if result_cache is None else result_cache.answers(condition)
    outcomes = {video: Outcome(**answer) for video, answer in known.items()}
    for batch in batches:
        if any(video not in outcomes for video in batch.videos):
            started = time.perf_counter()
            found = attack_batch(target(batch.look).eval(), batch, attacks)
            each = round((time.perf_counter() - started) / len(batch), 4)
            found = [replace(outcome, seconds=each) for outcome in found]
            outcomes |= dict(zip(batch.videos, found, strict=True))
            if result_cache is not None:
                result_cache.record(condition, batch.videos, [asdict(outcome) for outcome in found])
        advance(len(batch))
    everyone: dict[int, Outcome] = {}
    for part in distributed.collect(outcomes):
        everyone |= part
    return Curve(tuple(attacks), dict(sorted(everyone.items())))


def attack_batch(model: nn.Module, batch: Clips, attacks: Mapping[str, Attack]) -> list[Outcome]:
    """What becomes of each clip of a batch.

    A clip is attacked only while it is right, and each attack begins at what the smaller budget
    found for it, which a larger one allows.

    Args:
        model: pixels of the batch -> logits, on their device, in eval mode.
        batch: the clips.
        attacks: by budget, smallest first.
    """
    labels, clean = batch.labels.tolist(), predict(model, batch.clips)
    outcomes = [Outcome(*both) for both in zip(labels, clean.tolist(), strict=True)]
    rows, start = (clean == batch.labels).nonzero()[:, 0], None
    for eps, attack in attacks.items():
        if len(rows) == 0:
            break
        standing = batch.take(rows)
        attacked = attack(model, standing.clips, standing.labels, standing.seeds, start)
        became = predict(model, attacked)
        fell = became != standing.labels
        sizes = frame_rms(standing.clips, attacked).tolist()
        found = zip(rows.tolist(), became.tolist(), fell.tolist(), sizes, strict=True)
        for row, named, fatal, rms in found:
            outcomes[row] = replace(
                outcomes[row],
                fooled_at=eps if fatal else None,
                became=named if fatal else None,
                frame_rms=[round(value, 4) for value in rms],
            )
        rows, start = rows[~fell], attacked[~fell]
    return outcomes


@torch.inference_mode()
def predict(model: nn.Module, clips: Tensor) -> Tensor:
    """The class named for each clip, int64 `[N]`."""
    return model(clips).argmax(dim=1)


def frame_rms(clean: Tensor, adversarial: Tensor) -> Tensor:
    """Root mean square of the difference in each frame, in 1/255: `[N, 3, T, H, W]` -> `[N, T]`."""
    return 255 * (adversarial - clean).square().mean(dim=(1, 3, 4)).sqrt()


def _most_common(counts: Counter[int]) -> int:
    """-1 where there is none; the smaller label among equals, in whatever order they were met."""
    return max(counts, key=lambda label: (counts[label], -label), default=-1)


def _count(outcomes: Iterable[Outcome], classes: int) -> list[int]:
    return np.bincount([outcome.label for outcome in outcomes], minlength=classes).tolist()


def _mean_profile(rows: Sequence[Sequence[float]]) -> list[float]:
    length = min(map(len, rows))
    at = np.linspace(0, 1, length)
    even = [np.interp(at, np.linspace(0, 1, len(row)), row) for row in rows]
    return [round(float(value), 4) for value in np.mean(even, axis=0)]


# ----------------------------------------------------------------------
# Attacked clips on disk, without loss: a folder a set, with a description that any tool can read.
#
# `set.json` says what was attacked and how, and names the file of each clip: a clip whose pixels
# are whole multiples of 1/255 is an FFV1 film in Matroska, any other one float32 in safetensors.

MANIFEST = "set.json"
_RATE = Fraction(8)  # of a film to look at; a clip's frames are not evenly spaced in time
_KEYS = {"attack", "clean", "model", "classes", "look", "clips"}


def write_clip(stem: Path, clip: Tensor) -> Path:
    """Write a clip `[3, T, H, W]` in [0, 1], whole or not at all, and return where.

    Args:
        stem: the path without its suffix, which the pixels decide.
        clip: float32.
    """
    levels = (clip * 255).round()
    exact = bool((levels / 255 == clip).all())
    path = stem.with_name(stem.name + (".mkv" if exact else ".safetensors"))
    with replacing(path) as partial:
        if exact:
            _write_film(partial, levels.byte().permute(1, 2, 3, 0).cpu().numpy())
        else:
            save_file({"clip": clip.detach().cpu().contiguous()}, partial)
    return path


def read_clip(path: Path) -> Tensor:
    """The clip that `write_clip` wrote, the same to the last bit.

    Raises:
        UserError: it is missing or damaged.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)["clip"]
        with av.open(str(path)) as container:
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        return torch.from_numpy(np.stack(frames)).permute(3, 0, 1, 2).float() / 255
    except (OSError, ValueError, KeyError, SafetensorError, av.FFmpegError) as error:
        raise UserError(f"cannot read attacked clip {path}: {error}") from error


def write_set(folder: Path, description: Mapping[str, Any]) -> None:
    """Write the description of a set whose clips are there."""
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / MANIFEST) as partial:
        partial.write_text(json.dumps(description, indent=1) + "\n")


def read_set(folder: Path) -> dict[str, Any]:
    """The description of a set.

    Raises:
        UserError: there is none, or it is damaged.
    """
    path = folder / MANIFEST
    try:
        description = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    if not isinstance(description, dict) or not set(description) >= _KEYS:
        raise UserError(f"{path} does not describe attacked clips")
    if not description["clips"]:
        raise UserError(f"{path} names no clips")
    return description


def find_sets(paths: Sequence[Path]) -> list[Path]:
    """The folders of all sets at or below some paths, in order.

    Raises:
        UserError: there is none below one of them.
    """
    found = []
    for path in paths:
        sets = sorted(manifest.parent for manifest in path.rglob(MANIFEST))
        if not sets:
            raise UserError(
                f"{path} holds no attacked clips ({MANIFEST}); make some: vidcsl attack"
            )
        found += sets
    return list(dict.fromkeys(found))


def _write_film(path: Path, frames: np.ndarray) -> None:
    """Frames uint8 `[T, H, W, 3]` as lossless RGB."""
    with av.open(str(path), "w", format="matroska") as container:
        stream = container.add_stream("ffv1", rate=_RATE)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "bgr0"
        for pixels in frames:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            container.mux(stream.encode(frame.reformat(format="bgr0")))
        container.mux(stream.encode(None))
