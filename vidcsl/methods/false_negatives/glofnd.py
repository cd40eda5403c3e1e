"""GloFND: for every video a learnt threshold of similarity, which cuts off a given fraction."""

import torch
from torch import Tensor

from vidcsl.distributed import DistributedContext
from vidcsl.methods.false_negatives.detector import (
    DETECTORS,
    Detector,
    Observation,
    Samples,
    distinct,
)
from vidcsl.registry import Option


@DETECTORS.register(
    "glofnd",
    "candidates above the anchor's learnt threshold (Balmaseda et al., 2025)",
    THRESHOLD_LR=Option(0.05, "glofnd: learning rate of the thresholds", minimum=0),
)
class LearntThresholds(Detector):
    """Flags candidates that are more similar than the threshold of the anchor's video.

    Balmaseda et al., "Discovering Global False Negatives On the Fly for Self-supervised Contrastive
    Learning", ICML 2025. The threshold of a video descends along `ceiling - (fraction of its
    negatives above the threshold)`, so that over many batches that fraction of all other videos
    lies above it; each has an Adam of its own, stepped whenever the video is in a batch. Thresholds
    are learnt from the first step on, candidates are flagged from `start` on (0.35 in the paper).

    The authors' code scales up what it keeps: the flagged leave the sum of the negatives, but
    it stays as large (treatment "rescale"). With "eliminate", the default, it shrinks.

    Args:
        videos: length of the training list.
        ceiling: alpha, the fraction of the other videos; 1 / number of classes or less.
        start: fraction of the training run before anything is flagged.
        threshold_lr, betas: of Adam.
        distributed: the processes that train together.
    """

    threshold: Tensor
    mean: Tensor
    square: Tensor
    updates: Tensor

    def __init__(
        self,
        *,
        videos: int,
        ceiling: float = 0.01,
        start: float = 0.35,
        threshold_lr: float = 0.05,
        betas: tuple[float, float] = (0.9, 0.98),
        distributed: DistributedContext | None = None,
    ) -> None:
        super().__init__()
        self.ceiling, self.start = ceiling, start
        self.threshold_lr, self.betas = threshold_lr, betas
        self.distributed = distributed or DistributedContext()
        # At a cosine of 1 nothing is flagged until a video's threshold has come down.
        self.register_buffer("threshold", torch.ones(videos))
        self.register_buffer("mean", torch.zeros(videos))  # Adam's moments
        self.register_buffer("square", torch.zeros(videos))
        self.register_buffer("updates", torch.zeros(videos, dtype=torch.long))
        self._pending: list[tuple[Tensor, ...]] = []  # the updates of this step's blocks

    def forward(
        self,
        scores: Tensor,
        negatives: Tensor,
        anchors: Samples,
        candidates: Samples,
        progress: float,
    ) -> Tensor:
        """Bool `[b, M]`, by the thresholds after the block's own step of Adam."""
        videos, place = anchors.videos.unique(return_inverse=True)
        above = negatives & (scores > self.threshold[anchors.videos, None])
        fractions = above.sum(dim=1) / negatives.sum(dim=1).clamp(min=1)
        gradient = self.mean.new_zeros(len(videos)).scatter_reduce(
            0, place, (self.ceiling - fractions).to(self.mean.dtype), "mean", include_self=False
        )
        first, second = self.betas
        updates = self.updates[videos] + 1
        mean = first * self.mean[videos] + (1 - first) * gradient
        square = second * self.square[videos] + (1 - second) * gradient.square()
        scale = (square / (1 - second**updates)).sqrt() + 1e-8
        step = self.threshold_lr * mean / (1 - first**updates) / scale
        threshold = (self.threshold[videos] - step).clamp(-1, 1)  # cosines lie there
        # Kept back until `learn`: another block must see the state that this one saw.
        self._pending.append((videos, mean, square, threshold))
        if progress < self.start:
            return torch.zeros_like(negatives)
        return negatives & (scores > threshold[place, None])

    @torch.no_grad()
    def learn(self, observation: Observation) -> None:
        """Keep the updates of all blocks, those of all processes."""
        for videos, mean, square, threshold in self._pending:
            self.mean[videos], self.square[videos] = mean, square
            self.threshold[videos] = threshold
        self._pending.clear()
        videos, first = distinct(self.distributed.gather(observation.videos))
        # A video has rows on one process alone; the others take over what that one has learnt.
        for state in (self.mean, self.square, self.threshold):
            state[videos] = self.distributed.gather(state[observation.videos])[first]
        self.updates[videos] += 1
