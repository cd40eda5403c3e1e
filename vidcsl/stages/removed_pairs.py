"""Some of the pairs that a detector removes, right and wrong ones, kept for the report."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from fvcore.common.config import CfgNode
from torch import Tensor

from vidcsl import builders
from vidcsl.data.lists import VideoList
from vidcsl.data.loader import Batch
from vidcsl.engine.distributed import World
from vidcsl.engine.run_folder import RunFolder
from vidcsl.engine.step import augmented
from vidcsl.evaluation.arrays import save_arrays
from vidcsl.objectives import ContrastiveMethod, Method
from vidcsl.objectives.false_negatives import Detector, Observation, Samples

BATCHES = 4  # looked at; a queue's candidates are the videos of the batches before
FRAMES = 3  # of a clip: its first, middle and last


@dataclass(frozen=True)
class RemovedPair:
    """Two videos by their indices, how alike the detector found them, and whether it was right."""

    anchor: int
    candidate: int
    similarity: float
    right: bool


class RecordingDetector(Detector):
    """Does what another detector does and writes down what it flags; learns nothing."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector
        self.found: list[RemovedPair] = []

    def learn(self, observation: Observation) -> None:
        """The state stays as the training left it."""

    def forward(
        self,
        scores: Tensor,
        negatives: Tensor,
        anchors: Samples,
        candidates: Samples,
        progress: float,
    ) -> Tensor:
        """The other's answer, bool `[b, M]`."""
        flagged: Tensor = self.detector(scores, negatives, anchors, candidates, progress)
        rows, columns = flagged.nonzero(as_tuple=True)
        labels = anchors.labels[rows], candidates.labels[columns]
        judged = (labels[0] >= 0) & (labels[1] >= 0)  # else nobody knows whether it was right
        found = (
            anchors.videos[rows],
            candidates.videos[columns],
            scores[rows, columns],
            labels[0] == labels[1],
        )
        self.found += [
            RemovedPair(*values)
            for values in zip(*(each[judged].tolist() for each in found), strict=True)
        ]
        return flagged


def keep_removed_pairs(
    cfg: CfgNode, method: Method, train: VideoList, world: World, folder: RunFolder
) -> None:
    """Write `artifacts/pairs.npz`: pairs of a few batches that the trained method removes.

    Nothing is learned from these batches. A queue moves on, but evaluation does not ask it.
    """
    most = cfg.FALSE_NEGATIVES.EXAMPLES if cfg.FALSE_NEGATIVES.DETECTOR != "none" else 0
    if not most or not isinstance(method, ContrastiveMethod):
        return
    path = folder.artifacts / "pairs.npz"
    if world.share(path.exists()):
        return
    loader = builders.build_train_loader(cfg, train, world)
    found, clips = _removed(cfg, method, loader.epoch(cfg.TRAIN.EPOCHS), world)
    shown = choose(found, known=set(clips), most=most)
    if world.is_main and shown:
        save_arrays(path, _arrays(shown, clips, train), compressed=True)


def choose(found: Iterable[RemovedPair], *, known: set[int], most: int) -> list[RemovedPair]:
    """The surest right and wrong ones, at most so many of either; a video is shown once."""
    kept: list[RemovedPair] = []
    for right in (True, False):
        of_kind = (p for p in found if p.right is right and {p.anchor, p.candidate} <= known)
        seen: set[int] = set()
        chosen: list[RemovedPair] = []
        for pair in sorted(of_kind, key=lambda p: (-p.similarity, p.anchor, p.candidate)):
            if len(chosen) < most and not seen & {pair.anchor, pair.candidate}:
                chosen.append(pair)
                seen |= {pair.anchor, pair.candidate}
        kept += chosen
    return kept


@torch.no_grad()
def _removed(
    cfg: CfgNode, method: ContrastiveMethod, batches: Iterable[Batch], world: World
) -> tuple[list[RemovedPair], dict[int, Tensor]]:
    """The pairs that are removed, and the first view of each video of this process."""
    augment, detector = builders.build_augmentation(cfg), method.detector
    recording = RecordingDetector(detector)
    clips: dict[int, Tensor] = {}
    method.eval()
    method.detector = recording
    try:
        for _, batch in zip(range(BATCHES), batches, strict=False):
            looked_at = augmented(batch.to(world.device), augment, seed=cfg.SEED, progress=1.0)
            stills = _stills(looked_at.clips[:, 0])
            clips.update(zip(batch.indices.tolist(), stills, strict=True))
            method(looked_at)
    finally:
        method.detector = detector
    return recording.found, clips


def _stills(clips: Tensor) -> Tensor:
    """uint8 `[N, K, S, S, 3]` of clips `[N, 3, T, S, S]` in [0, 1]."""
    frames = torch.linspace(0, clips.shape[2] - 1, FRAMES).round().long()
    return (clips[:, :, frames.to(clips.device)] * 255).round().byte().permute(0, 2, 3, 4, 1).cpu()


def _arrays(shown: list[RemovedPair], clips: dict[int, Tensor], train: VideoList) -> dict[str, Any]:
    sides = [[pair.anchor for pair in shown], [pair.candidate for pair in shown]]
    anchors, candidates = (np.stack([clips[video].numpy() for video in side]) for side in sides)
    videos = [[train.videos[video] for video in pair] for pair in zip(*sides, strict=True)]
    return {
        "anchors": anchors,
        "candidates": candidates,
        "similarity": np.array([pair.similarity for pair in shown], np.float32),
        "right": np.array([pair.right for pair in shown]),
        "classes": np.array([[train.classes[v.label] for v in pair] for pair in videos]),
        "videos": np.array([[v.path.name for v in pair] for pair in videos]),
    }
