"""Ours: videos are compared by a memory bank of all their views, not by two of them."""

import torch
import torch.nn.functional as F
from torch import Tensor

from vidcsl.distributed import DistributedContext
from vidcsl.errors import UserError
from vidcsl.methods.false_negatives.detector import (
    DETECTORS,
    Detector,
    Observation,
    Samples,
    distinct,
    nearest,
    risen,
)
from vidcsl.registry import Option


@DETECTORS.register(
    "memory",
    "the most similar candidates by a memory bank of all views so far (ours)",
    ROUNDS=Option(
        1,
        "memory: number of runs in iterative training, each from scratch; the memory bank of a run "
        "flags the false negatives of the next one from its first step on",
        minimum=1,
    ),
    TUTOR=Option(
        "",
        "memory: teacher, a checkpoint of a run with this detector on the same list, by any "
        "method; its memory bank flags false negatives from the first step on",
        path=True,
    ),
)
class MemoryBank(Detector):
    """Flags the candidates whose videos are most alike in a memory bank of all views seen so far.

    Two clips of one class seldom look alike, but what is typical of their videos does: a moving
    average of each video's embeddings, over its views and over epochs, is compared, centred, in
    place of single views. It costs no further forward pass. Ours; the rising fraction is that of
    `AdaptiveSimilarity`, and averages over views are in the spirit of Huynh et al. (WACV 2022), who
    average the anchor's side of one step.

    The features of a finished run know more of the classes than those of one that has begun. So a
    run may take its false negatives from the memory bank of an earlier run, by whatever method,
    from its first step on.

    Args:
        videos: length of the training list.
        dim: length of an embedding.
        ceiling, start, ramp: as of `AdaptiveSimilarity`.
        momentum: of the moving average, which moves once each time that the video is in a batch.
        earlier: hold an earlier run's memory bank, too, which `learn_from` fills.
        distributed: the processes that train together.
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
        earlier: bool = False,
        distributed: DistributedContext | None = None,
    ) -> None:
        super().__init__()
        self.ceiling, self.start, self.ramp = ceiling, start, ramp
        self.momentum, self.earlier = momentum, earlier
        self.distributed = distributed or DistributedContext()
        for name in ("", "earlier_")[: 1 + earlier]:
            self.register_buffer(f"{name}memory", torch.zeros(videos, dim))
            self.register_buffer(f"{name}visits", torch.zeros(videos, dtype=torch.long))

    def learn_from(self, memory: Tensor, visits: Tensor) -> None:
        """Take the false negatives from an earlier run's memory bank of the same videos.

        Raises:
            UserError: it holds other videos, or embeddings of another length.
        """
        if memory.shape != self.earlier_memory.shape:
            raise UserError(
                f"a memory bank of {memory.shape[0]} videos by {memory.shape[1]} numbers does not "
                f"fit {len(self.earlier_memory)} by {self.earlier_memory.shape[1]}: give the same "
                "list and METHOD.PROJECTOR_DIM"
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
        """Bool `[b, M]`, a fraction of the candidates whose videos are in the memory bank.

        Videos that were in no batch yet are neither compared nor flagged.
        """
        memory, seen, fraction = self.memory, self.visits > 0, self.ceiling
        if self.earlier and self.earlier_visits.any():
            memory, seen = self.earlier_memory, self.earlier_visits > 0
        else:
            fraction *= risen(progress, start=self.start, ramp=self.ramp)
        if fraction == 0:
            return torch.zeros_like(negatives)
        # Centred: the embeddings of a young encoder share a large common part.
        centre = (memory * seen[:, None]).sum(dim=0) / seen.sum().clamp(min=1)
        # -1 stands for the random keys of a fresh queue, and would index the last video.
        known = negatives & seen[anchors.videos, None]
        known &= seen[candidates.videos] & (candidates.videos >= 0)
        rows, columns = (
            F.normalize(memory[each.videos] - centre, dim=1) for each in (anchors, candidates)
        )
        return nearest(rows @ columns.T, known, (fraction * known.sum(dim=1)).long())

    @torch.no_grad()
    def learn(self, observation: Observation) -> None:
        """Move the memory of the step's videos, those of all processes."""
        gather = self.distributed.gather
        videos, first = distinct(gather(observation.videos))
        views = gather(observation.embeddings.to(self.memory.dtype).mean(dim=1))[first]
        # As Adam's bias correction: the first visits weigh alike, and none is remembered as zero.
        visits = self.visits[videos] + 1
        kept = (self.momentum - self.momentum**visits) / (1 - self.momentum**visits)
        self.memory[videos] = torch.lerp(views, self.memory[videos], kept.to(views)[:, None])
        self.visits[videos] = visits
