"""IFND: videos of one cluster are false negatives of each other, confident videos first."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vidcsl.distributed import DistributedContext
from vidcsl.methods.false_negatives.detector import (
    DETECTORS,
    Detector,
    Observation,
    Samples,
    distinct,
    risen,
)
from vidcsl.registry import Option
from vidcsl.seeding import seed_of

SHARPNESS = 0.1  # temperature of the softmax over centres that gives a video's confidence


@DETECTORS.register(
    "clusters",
    "videos of one k-means cluster (IFND, Chen et al., 2022)",
    CLUSTERS=Option([10], "clusters: number of clusters; several falling numbers make a hierarchy"),
    ACCEPTED=Option(
        1.0,
        "clusters: fraction of the videos, most confident first, whose clusters count in the end",
        minimum=0,
        maximum=1,
    ),
)
class Clusters(Detector):
    """Flags videos that fall into the anchor's cluster, where both lie there with confidence.

    Chen et al., "Incremental False Negative Detection for Contrastive Learning", ICLR 2022: a
    memory holds each video's newest embedding; once an epoch it is clustered by k-means, the
    centres again into fewer (a hierarchy). A video's confidence is the softmax over centres at its
    own one, and the accepted fraction of the videos, most confident first, rises with training. A
    pair is flagged where some level of the hierarchy puts it together.

    Args:
        videos: length of the training list.
        dim: length of an embedding.
        clusters: number of clusters at each level of the hierarchy, the most first.
        epochs: of the training run: the memory is clustered at the start of each but the first.
        accepted: fraction of the videos whose clusters count in the end.
        start, ramp: fractions of the run before any cluster counts, and over which that rises.
        seed: of k-means.
        distributed: the processes that train together.
    """

    needs = ("hierarchy",)
    memory: Tensor
    seen: Tensor
    labels: Tensor
    rank: Tensor
    epoch: Tensor

    def __init__(
        self,
        *,
        videos: int,
        dim: int,
        clusters: tuple[int, ...] = (10,),
        epochs: int = 1,
        accepted: float = 1.0,
        start: float = 0.25,
        ramp: float = 0.5,
        seed: int = 0,
        distributed: DistributedContext | None = None,
    ) -> None:
        super().__init__()
        self.clusters, self.epochs, self.accepted = tuple(clusters), epochs, accepted
        self.start, self.ramp, self.seed = start, ramp, seed
        self.distributed = distributed or DistributedContext()
        levels = len(clusters)
        self.register_buffer("memory", torch.zeros(videos, dim))
        self.register_buffer("seen", torch.zeros(videos, dtype=torch.bool))
        self.register_buffer("labels", torch.full((levels, videos), -1))
        # The fraction of the videos that are more confident: 0 for the most confident one.
        self.register_buffer("rank", torch.ones(levels, videos))
        self.register_buffer("epoch", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def learn(self, observation: Observation) -> None:
        """Cluster where a new epoch has begun, then remember the batch."""
        epoch = int(observation.progress * self.epochs + 1e-6)
        # By the first batch of an epoch, so that a resumed run clusters at the same step.
        if epoch != int(self.epoch):  # smaller where a run starts from another run's state
            self.cluster(epoch)
        gather = self.distributed.gather
        videos, first = distinct(gather(observation.videos))
        embeddings = gather(F.normalize(observation.embeddings.mean(dim=1), dim=1))
        self.memory[videos] = embeddings[first].to(self.memory.dtype)
        self.seen[videos] = True

    def cluster(self, epoch: int) -> None:
        """Label the videos seen so far anew."""
        self.epoch.fill_(epoch)
        known = self.seen.nonzero().flatten()
        if len(known) <= self.clusters[0]:
            return
        # Rounded, as the last digit of a wider type must not decide between two that are alike.
        vectors = self.memory[known].float().cpu()
        seed = seed_of(self.seed, epoch, "clusters") % 2**32
        found = cluster_hierarchy(vectors.numpy(), self.clusters, seed=seed)
        # Rounding may part two processes at a tie: the first decides for all.
        found = self.distributed.broadcast(found)
        for level, (labels, centres) in enumerate(found):
            mine = torch.from_numpy(labels).long()
            likely = (vectors @ torch.from_numpy(centres).T / SHARPNESS).softmax(dim=1)
            confidence = likely.gather(1, mine[:, None])[:, 0]
            place = confidence.argsort(descending=True, stable=True).argsort()
            self.labels[level, known] = mine.to(self.labels.device)
            self.rank[level, known] = (place / len(known)).to(self.rank)

    def forward(
        self,
        scores: Tensor,
        negatives: Tensor,
        anchors: Samples,
        candidates: Samples,
        progress: float,
    ) -> Tensor:
        """Bool `[b, M]`."""
        accepted = self.accepted * risen(progress, start=self.start, ramp=self.ramp)
        counting = torch.where(self.rank < accepted, self.labels, -1)  # [levels, videos]
        together = torch.zeros_like(negatives)
        for labels in counting:
            mine, theirs = labels[anchors.videos, None], labels[candidates.videos]
            together |= (mine == theirs) & (mine >= 0)
        # -1 stands for the random keys of a fresh queue, and would index the last video.
        return together & negatives & (candidates.videos >= 0)


def cluster_hierarchy(
    vectors: np.ndarray, clusters: tuple[int, ...], *, seed: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each level, from many clusters to few: labels `[n]` and unit centres `[k, P]`.

    Args:
        vectors: unit embeddings `[n, P]`, more than there are clusters.
        clusters: how many at each level; each level clusters the centres of the one before.
        seed: of k-means.
    """
    from sklearn.cluster import KMeans  # here, as it takes a second to import

    labels, levels = np.arange(len(vectors)), []
    points, weights = vectors, np.ones(len(vectors), dtype=int)
    for count in clusters:
        # A centre weighs as many videos as it has: joining two large clusters costs more.
        means = KMeans(count, n_init=3, random_state=seed).fit(points, sample_weight=weights)
        labels = means.labels_[labels]
        centres = means.cluster_centers_
        points = (centres / np.linalg.norm(centres, axis=1, keepdims=True)).astype(vectors.dtype)
        weights = np.bincount(labels, minlength=count)
        levels.append((labels, points))
    return levels
