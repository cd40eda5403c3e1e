"""GloFND: a threshold of similarity for every video, learnt so that it cuts off a given share."""

import torch
from torch import Tensor

from vidcsl.objectives.false_negatives.detector import Detector, Observation
from vidcsl.objectives.false_negatives.samples import Samples
from vidcsl.objectives.world import Alone, World

BLOCK_ROWS = 1024


class LearntThresholds(Detector):
    """Flags candidates that are more similar than the threshold of the anchor's video.

    Balmaseda et al., "Discovering Global False Negatives On the Fly for Self-supervised Contrastive
    Learning", ICML 2025. The threshold of a video descends along `share - (share of its negatives
    above the threshold)`, so that over many batches `share` of all other videos lie above it; each
    has an Adam of its own, stepped whenever the video comes by. Thresholds are learnt from the
    first step on, candidates are flagged from `start` on (0.35 in the paper).

    Args:
        videos: length of the training list.
        share: alpha, of the other videos; 1 / number of classes or less.
        start: share of the training before anything is flagged.
        learning_rate, betas: of Adam.
        world: the processes that train together.
    """

    threshold: Tensor
    mean: Tensor
    square: Tensor
    updates: Tensor

    def __init__(
        self,
        *,
        videos: int,
        share: float = 0.01,
        start: float = 0.35,
        learning_rate: float = 0.05,
        betas: tuple[float, float] = (0.9, 0.98),
        world: World | None = None,
    ) -> None:
        super().__init__()
        self.share, self.start = share, start
        self.learning_rate, self.betas = learning_rate, betas
        self.world = world or Alone()
        self.register_buffer("threshold", torch.ones(videos))
        self.register_buffer("mean", torch.zeros(videos))  # Adam's moments
        self.register_buffer("square", torch.zeros(videos))
        self.register_buffer("updates", torch.zeros(videos, dtype=torch.long))

    @torch.no_grad()
    def learn(self, observation: Observation) -> None:
        """One step of Adam for every video of the batch, on all processes."""
        gather = self.world.gather
        videos = gather(observation.anchors.videos)
        gradients = gather(self.share - self._above(observation)).to(self.mean.dtype)
        seen, place = videos.unique(return_inverse=True)  # all views of a video count alike
        gradient = self.mean.new_zeros(len(seen)).scatter_reduce(
            0, place, gradients, "mean", include_self=False
        )
        first, second = self.betas
        self.updates[seen] += 1
        self.mean[seen] = first * self.mean[seen] + (1 - first) * gradient
        self.square[seen] = second * self.square[seen] + (1 - second) * gradient.square()
        step = self.mean[seen] / (1 - first ** self.updates[seen])
        scale = (self.square[seen] / (1 - second ** self.updates[seen])).sqrt() + 1e-8
        moved = self.threshold[seen] - self.learning_rate * step / scale
        self.threshold[seen] = moved.clamp(-1, 1)

    def _above(self, observation: Observation) -> Tensor:
        """Share of each anchor's negatives that lie above its threshold, `[N]`."""
        shares = []
        for start in range(0, len(observation.anchors), BLOCK_ROWS):
            rows = slice(start, min(start + BLOCK_ROWS, len(observation.anchors)))
            scores, negatives = observation.block(rows)
            above = self._over(scores, observation.anchors[rows]) & negatives
            shares.append(above.sum(dim=1) / negatives.sum(dim=1).clamp(min=1))
        return torch.cat(shares)

    def forward(
        self,
        scores: Tensor,
        negatives: Tensor,
        anchors: Samples,
        candidates: Samples,
        progress: float,
    ) -> Tensor:
        """Bool `[b, M]`."""
        if progress < self.start:
            return torch.zeros_like(negatives)
        return self._over(scores, anchors) & negatives

    def _over(self, scores: Tensor, anchors: Samples) -> Tensor:
        return scores > self.threshold[anchors.videos, None].to(scores.dtype)
