"""GloFND: a threshold of similarity for every video, learnt so that it cuts off a given share."""

import torch
from torch import Tensor

from vidcsl.distributed import DistributedContext
from vidcsl.methods.false_negatives.detector import Detector, Observation, Samples, distinct
from vidcsl.methods.losses import count


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
        distributed: DistributedContext | None = None,
    ) -> None:
        super().__init__()
        self.share, self.start = share, start
        self.learning_rate, self.betas = learning_rate, betas
        self.distributed = distributed or DistributedContext()
        self.register_buffer("threshold", torch.ones(videos))
        self.register_buffer("mean", torch.zeros(videos))  # Adam's moments
        self.register_buffer("square", torch.zeros(videos))
        self.register_buffer("updates", torch.zeros(videos, dtype=torch.long))

        self._steps: list[tuple[Tensor, ...]] = []  # of this step's blocks

    def forward(
        self,
        scores: Tensor,
        negatives: Tensor,
        anchors: Samples,
        candidates: Samples,
        progress: float,
    ) -> Tensor:
        """Bool `[b, M]`, by the thresholds that the block's own step of Adam leads to."""
        videos, place = anchors.videos.unique(return_inverse=True)
        above = negatives & (scores > self.threshold[anchors.videos, None])
        shares = count(above) / count(negatives).clamp(min=1)
        gradient = self.mean.new_zeros(len(videos)).scatter_reduce(
            0, place, (self.share - shares).to(self.mean.dtype), "mean", include_self=False
        )
        mean, square, threshold = self._adam(videos, gradient)
        self._steps.append((videos, mean, square, threshold))
        if progress < self.start:
            return torch.zeros_like(negatives)
        return negatives & (scores > threshold[place, None])

    def _adam(self, videos: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        first, second = self.betas
        updates = self.updates[videos] + 1
        mean = first * self.mean[videos] + (1 - first) * gradient
        square = second * self.square[videos] + (1 - second) * gradient.square()
        scale = (square / (1 - second**updates)).sqrt() + 1e-8
        moved = self.threshold[videos] - self.learning_rate * mean / (1 - first**updates) / scale
        return mean, square, moved.clamp(-1, 1)

    @torch.no_grad()
    def learn(self, observation: Observation) -> None:
        """Keep the steps that the blocks took, those of all processes."""
        for videos, mean, square, threshold in self._steps:
            self.mean[videos], self.square[videos] = mean, square
            self.threshold[videos] = threshold
        self._steps.clear()
        videos, first = distinct(self.distributed.gather(observation.videos))
        for moved in (self.mean, self.square, self.threshold):
            moved[videos] = self.distributed.gather(moved[observation.videos])[first]
        self.updates[videos] += 1
