"""Which videos a teacher takes for false negatives of each other: a threshold for each video.

A pair needs no list of neighbours: it is flagged where its similarity passes the thresholds of its
two videos. So a training step compares the videos of its batch alone, and nothing of size N x N is
ever held, whatever the number N of videos.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vidcsl.seeding import numpy_generator

RULES = ("auto", "share", "mutual")
REFERENCES = 16_384  # videos that thresholds are estimated on; all of them in smaller lists
_BLOCK = 1024


@dataclass(frozen=True)
class Teacher:
    """What a teacher knows of the videos of a training list.

    Attributes:
        name: for reports.
        vectors: float16 `[N, D]`, in the order of the list, usually memory-mapped; rows have unit
            length, or are zero where the teacher has nothing to say of a video.
        path: where they are stored.
    """

    name: str
    vectors: NDArray[np.float16]
    path: Path | None = None

    def __len__(self) -> int:
        return len(self.vectors)

    def silent(self) -> int:
        """The number of videos without a vector; they are never flagged."""
        known = (
            self.vectors[start : start + _BLOCK].any(axis=1).sum()
            for start in range(0, len(self), _BLOCK)
        )
        return len(self) - int(sum(known))

    def rows(self, videos: Tensor) -> Tensor:
        """Vectors float32 `[B, D]` of int64 `[B]`, on its device; zero for unknown videos, -1."""
        numbers = videos.cpu().numpy()
        found = np.asarray(self.vectors[np.maximum(numbers, 0)], dtype=np.float32)
        found[numbers < 0] = 0
        return torch.from_numpy(found).to(videos.device)


def thresholds(
    teacher: Teacher,
    *,
    rule: str,
    share: float = 0.1,
    rate: float = 0.5,
    device: torch.device | str = "cpu",
) -> Tensor:
    """From which similarity on another video counts as alike, for each video.

    Args:
        teacher: see there.
        rule: "share" and "mutual": each video's nearest `share` of the others. "auto": as many as
            stand out. Most videos are no false negatives of a given one, so the lower half of its
            similarities shows how those are distributed: a normal distribution with the median and
            the lower 15.9 % quantile. The threshold is the lowest at which the pairs that this
            distribution expects above it are at most `rate` of those that are there (Benjamini &
            Hochberg 1995, with an empirical null as in Efron, JASA 2004). It needs no number of
            classes, and finds nothing where nothing stands out.
        share: of the other videos.
        rate: expected fraction of wrong pairs among the flagged.
        device: where to compute.

    Returns:
        float32 `[N]`, on the CPU; infinite where nothing is flagged.
    """
    count = len(teacher)
    chosen = _references(teacher.vectors)
    references = teacher.rows(torch.from_numpy(chosen).to(device))
    found = torch.full((count,), torch.inf)
    for start in range(0, count, _BLOCK):
        videos = torch.arange(start, min(start + _BLOCK, count))
        rows = teacher.rows(videos.to(device))
        similarities = rows @ references.T
        itself = videos[:, None] == torch.from_numpy(chosen)[None]
        # A video is no neighbour of its own: it sorts last, and is cut off where it was among them.
        similarities = similarities.masked_fill(itself.to(device), -torch.inf)
        if similarities.device.type == "cpu":
            # NumPy is several times faster, as it need not remember where each number was.
            falling = torch.from_numpy(-np.sort(-similarities.numpy(), axis=1))
        else:
            falling = similarities.sort(dim=1, descending=True).values
        others = (~itself).sum(dim=1).to(device)
        known = rows.any(dim=1) & (others > 0)
        if rule == "auto":
            least = _standing_out(falling, others, rate)
        else:  # the similarity of the last of the nearest fraction, at least one
            ranks = (share * others).round().long().clamp(min=1) - 1
            least = falling.gather(1, ranks[:, None].clamp(max=falling.shape[1] - 1))[:, 0]
        found[videos] = torch.where(known, least, torch.inf).cpu()
    return found


def smoothed(vectors: NDArray[np.float16], path: Path, *, nearest: int) -> NDArray[np.float16]:
    """Average each vector with those of its nearest videos, weighted by their cosine.

    What neighbours share is what they have in common, and chance cancels out: "database-side
    feature augmentation" of image retrieval (Turcot & Lowe, ICCV workshops 2009).

    Args:
        vectors: `[N, D]`, rows of unit length or zero.
        path: of the `.npy` file that is written.
        nearest: how many; in long lists the nearest of REFERENCES videos.

    Returns:
        Memory-mapped `[N, D]`, rows of unit length; zero rows stay so.
    """
    chosen = _references(vectors)
    references = np.asarray(vectors[chosen], dtype=np.float32)
    found = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=vectors.shape)
    for start in range(0, len(vectors), _BLOCK):
        rows = np.asarray(vectors[start : start + _BLOCK], dtype=np.float32)
        cosines = torch.from_numpy(rows @ references.T)
        itself = torch.arange(start, start + len(rows))[:, None] == torch.from_numpy(chosen)[None]
        cosines.masked_fill_(itself, 0)  # it counts once, with a weight of 1, reference or not
        weights, places = cosines.clamp(min=0).topk(min(nearest, len(chosen)), dim=1)
        near = references[places.numpy()]  # [b, nearest, D]
        rows = rows + np.einsum("bn,bnd->bd", weights.numpy(), near)
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        found[start : start + _BLOCK] = rows / np.maximum(lengths, 1e-12)
    found.flush()
    return np.load(path, mmap_mode="r")


def _references(vectors: NDArray[np.float16]) -> NDArray[np.int64]:
    """The places of the videos that others are compared with: all known ones of a short list."""
    chosen = np.arange(len(vectors))
    if len(vectors) > REFERENCES:
        chosen = np.sort(
            numpy_generator("references").choice(len(vectors), REFERENCES, replace=False)
        )
    return chosen[np.asarray(vectors[chosen]).any(axis=1)]


def flagged(similarities: Tensor, anchors: Tensor, candidates: Tensor, *, agreement: str) -> Tensor:
    """Bool `[b, M]`: which pairs pass.

    Args:
        similarities: `[b, M]`.
        anchors, candidates: the thresholds of the rows `[b]` and columns `[M]`.
        agreement: whose threshold is to be passed: the "anchor"'s or "both".
    """
    passed = similarities >= anchors[:, None]
    return passed & (similarities >= candidates) if agreement == "both" else passed


def _standing_out(falling: Tensor, others: Tensor, rate: float) -> Tensor:
    """The lowest similarity of each row at which the false discovery rate is at most `rate`."""
    expected = expected_by_chance(falling, others, falling)
    ranks = torch.arange(1, falling.shape[1] + 1, device=falling.device)
    passing = (expected <= rate * ranks) & (ranks <= others[:, None])
    last = torch.where(passing, ranks, 0).amax(dim=1)
    least = falling.gather(1, (last[:, None] - 1).clamp(min=0))[:, 0]
    return torch.where(last > 0, least, torch.inf)


def expected_by_chance(falling: Tensor, others: Tensor, least: Tensor) -> Tensor:
    """How many pairs of each row reach a similarity though nothing makes them alike.

    Args:
        falling: similarities `[b, M]` of each row, falling; the first `others` are compared.
        others: `[b]`.
        least: the similarities in question, `[b, K]`.

    Returns:
        `[b, K]`, by a normal distribution with the row's median and lower 15.9 % quantile.
    """
    # By quantiles of the lower half: false negatives, which are what is searched, lie above.
    median, low = (
        falling.gather(1, ((1 - quantile) * (others - 1)).round().long()[:, None])
        for quantile in (0.5, 0.158655)  # the latter is one standard deviation below
    )
    spread = (median - low).clamp(min=1e-6)
    return others[:, None] * torch.special.ndtr((median - least) / spread)
