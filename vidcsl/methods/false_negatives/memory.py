"""Ours: videos are compared by what is remembered of all their views, not by two of them."""

import torch
import torch.nn.functional as F
from torch import Tensor

from vidcsl.distributed import DistributedContext
from vidcsl.errors import UserError
from vidcsl.methods.false_negatives.detector import Detector, Observation, Samples, distinct
from vidcsl.methods.false_negatives.similarity import nearest, risen
from vidcsl.methods.losses import count


class MemoryBank(Detector):
    """Flags the candidates whose videos are most alike in a memory of all views seen so far.

    Two clips of one class seldom look alike, but what is typical of their videos does: a moving
    average of each video's embeddings, over its views and over epochs, is compared, centred, in
    place of single views. It costs no further forward pass. Ours; the growing share is that of
    `AdaptiveSimilarity`, and averages over views as voters are in the spirit of Huynh et al. (WACV
    2022), which averages the anchor's side of one step.

    The features of a whole training know more of the classes than those of one that has begun. So
    one that follows another, whatever that one learned by, can be judged by what was remembered
    then, and from its first step on.

    Args:
        videos: length of the training list.
        dim: length of an embedding.
        ceiling, start, ramp: as of `AdaptiveSimilarity`.
        momentum: of the moving average, a step of it each time that the video comes by.
        told: whether `learn_from` tells what an earlier training remembers.
        world: the processes that train together.
    """

    memory: Tensor
    visits: Tensor
    earlier_memory: Tensor
    earlier_visits: Tensor

    def __init__(
        self,
        *,
        videos: int,
        dim: int,
        ceiling: float = 0.05,
        start: float = 0.25,
        ramp: float = 0.5,
        momentum: float = 0.7,
        told: bool = False,
        distributed: DistributedContext | None = None,
    ) -> None:
        super().__init__()
        self.ceiling, self.start, self.ramp = ceiling, start, ramp
        self.momentum, self.told, self.distributed = (
            momentum,
            told,
            distributed or DistributedContext(),
        )
        for name in ("", "earlier_")[: 1 + told]:
            self.register_buffer(f"{name}memory", torch.zeros(videos, dim))
            self.register_buffer(f"{name}visits", torch.zeros(videos, dtype=torch.long))

    def learn_from(self, memory: Tensor, visits: Tensor) -> None:
        """Judge by another's memory of the same videos.

        Raises:
            UserError: it is of other videos, or of embeddings of another length.
        """
        if memory.shape != self.earlier_memory.shape:
            raise UserError(
                f"a memory of {memory.shape[0]} videos by {memory.shape[1]} numbers cannot judge "
                f"{len(self.earlier_memory)} by {self.earlier_memory.shape[1]}: give the same list "
                "and METHOD.PROJECTOR_DIM"
            )
        self.earlier_memory.copy_(memory)
        self.earlier_visits.copy_(visits)

    def forward(
        self,
        scores: Tensor,
        negatives: Tensor,
        anchors: Samples,
        candidates: Samples,
        progress: float,
    ) -> Tensor:
        """Bool `[b, M]`; videos that have not come by yet are neither judged nor flagged.

        The share is one of those that are judged.
        """
        memory, seen, share = self.memory, self.visits > 0, self.ceiling
        if self.told and self.earlier_visits.any():
            memory, seen = self.earlier_memory, self.earlier_visits > 0
        else:
            share *= risen(progress, start=self.start, ramp=self.ramp)
        if share == 0:
            return torch.zeros_like(negatives)
        centre = (memory * seen[:, None]).sum(dim=0) / seen.sum().clamp(min=1)
        # -1 stands for the random keys of a fresh queue, which are of no video.
        judged = negatives & seen[anchors.videos, None]
        judged &= seen[candidates.videos] & (candidates.videos >= 0)
        rows, columns = (
            F.normalize(memory[each.videos] - centre, dim=1) for each in (anchors, candidates)
        )
        return nearest(rows @ columns.T, judged, (share * count(judged)).long())

    @torch.no_grad()
    def learn(self, observation: Observation) -> None:
        """Move the memory of the step's videos, those of all processes."""
        videos, first = distinct(self.distributed.gather(observation.videos))
        views = self.distributed.gather(observation.embeddings.to(self.memory.dtype).mean(dim=1))[
            first
        ]
        # As Adam's bias correction: the first visits weigh alike, and none is remembered as zero.
        visits = self.visits[videos] + 1
        kept = (self.momentum - self.momentum**visits) / (1 - self.momentum**visits)
        self.memory[videos] = torch.lerp(views, self.memory[videos], kept.to(views)[:, None])
        self.visits[videos] = visits
