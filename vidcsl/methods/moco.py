"""MoCo v2 and v3: clips are compared with keys of a momentum encoder, with a queue or without."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidcsl.errors import UserError
from vidcsl.methods.contrastive import Contrast, ContrastiveMethod
from vidcsl.methods.false_negatives import Samples
from vidcsl.methods.losses import Pairs, at_least_float32
from vidcsl.methods.method import METHODS, ClipBatch, MomentumEncoder
from vidcsl.methods.metrics import Metric
from vidcsl.models.encoder import Norms
from vidcsl.registry import Option

OLD = -1  # the view number of a queued key: it is no view of the current batch


class KeyContrast(ContrastiveMethod):
    """Every clip is a query, compared with keys that the momentum encoder makes.

    Args:
        encoder, projector: as of every contrastive method.
        predictor: embeddings -> queries, before normalisation.
        options: see `ContrastiveMethod`.
    """

    teacher: MomentumEncoder

    def __init__(
        self, encoder: nn.Module, projector: nn.Module, *, predictor: nn.Module, **options: Any
    ) -> None:
        super().__init__(encoder, projector, **options)
        self.predictor = predictor

    def keys(self, own: Tensor, rows: Samples) -> tuple[Tensor, Samples]:
        """The candidates `[M, P]` and their samples, of this process's keys `[B * V, P]`."""
        raise NotImplementedError

    def contrast(self, batch: ClipBatch) -> Contrast:
        """Queries against keys."""
        learning = batch.clips.shape[1] - self.voters
        clips = batch.clips[:, :learning]
        queries = self.predictor(self.projector(self.encoder(clips.flatten(0, 1))))
        queries = F.normalize(at_least_float32(queries), dim=1)
        by_momentum = self.embed_by_momentum(batch.clips)  # [B, V + voters, P]
        rows = batch.samples(learning)
        keys, columns = self.keys(by_momentum[:, :learning].flatten(0, 1), rows)
        support = by_momentum
        if self.judge == "online":
            own = queries.detach().unflatten(0, clips.shape[:2])
            support = torch.cat([own, by_momentum[:, learning:]], dim=1)
        return Contrast(
            anchors=queries,
            candidates=keys,
            rows=rows,
            columns=columns,
            support=support,
            scored=keys,
        )


class KeyQueue(nn.Module):
    """The newest keys of earlier steps; first in, first out, the same on all processes.

    It starts as random directions of no known video, as in MoCo.

    Args:
        length: K, keys that are kept.
        dim: length of a key.
    """

    keys: Tensor
    videos: Tensor
    groups: Tensor
    labels: Tensor
    place: Tensor

    def __init__(self, *, length: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("keys", F.normalize(torch.randn(length, dim), dim=1))
        for name in ("videos", "groups", "labels"):
            self.register_buffer(name, torch.full((length,), -1))
        self.register_buffer("place", torch.zeros((), dtype=torch.long))

    def samples(self) -> Samples:
        """What is known of the K keys."""
        views = torch.full_like(self.videos, OLD)
        return Samples(self.videos, self.groups, self.labels, views)

    @torch.no_grad()
    def push(self, keys: Tensor, samples: Samples) -> None:
        """Replace the oldest keys by the keys `[N, P]` of all processes.

        Raises:
            UserError: the queue is shorter than N.
        """
        check_queue(len(self.keys), keys=len(keys))
        places = (self.place + torch.arange(len(keys), device=keys.device)) % len(self.keys)
        self.keys[places] = keys.to(self.keys.dtype)
        self.videos[places] = samples.videos
        self.groups[places] = samples.groups
        self.labels[places] = samples.labels
        self.place.copy_((self.place + len(keys)) % len(self.keys))


def check_queue(length: int, *, keys: int) -> None:
    """Raise a UserError where the keys of one step do not fit a queue of `length`."""
    if length < keys:
        raise UserError(
            f"METHOD.QUEUE is {length}, shorter than the {keys} keys of one step "
            f"(TRAIN.BATCH x DATA.CLIPS): set METHOD.QUEUE to at least {keys}"
        )


@METHODS.register(
    "moco_v2",
    "MoCo v2 (Chen et al., 2020)",
    QUEUE=Option(4096, "moco_v2: keys of earlier steps in the queue", minimum=1),
)
class MoCoV2(KeyContrast):
    """Finds the keys of a video's other clips among the keys of earlier videos.

    He et al., "Momentum Contrast for Unsupervised Visual Representation Learning", CVPR 2020, with
    the projector of Chen et al., "Improved Baselines with Momentum Contrastive Learning", 2020.
    Every clip is query and key, of any number of clips a video, and all keys are queued, as in
    Feichtenhofer et al., CVPR 2021. With more than two clips its code has one softmax for each
    query and key, over that key and the queue, and averages them: that is LOSS.NAME debiased with
    LOSS.PRIOR 0. NT-Xent, the default, has all positives of a query in one denominator. BatchNorm
    over all processes makes the shuffling of batches needless. Old keys of the anchor's own video,
    which the queue of a small data set holds, are left out; the published code keeps them.

    Args:
        encoder, projector: as of every contrastive method.
        queue: of keys as long as the projector's outputs.
        options: see `ContrastiveMethod`.
    """

    parts = ("queue", "projector", "momentum_encoder")
    head_norms = Norms(hidden=False, last=False)

    def __init__(
        self, encoder: nn.Module, projector: nn.Module, *, queue: KeyQueue, **options: Any
    ) -> None:
        super().__init__(encoder, projector, predictor=nn.Identity(), **options)
        self.queue = queue
        self._fresh: tuple[Tensor, Samples]  # this step's keys, pushed after the loss

    def candidates(self, *, videos: int, clips: int) -> int:  # noqa: ARG002
        """The keys of the video's other clips and the queue."""
        return clips - 1 + len(self.queue.keys)

    def keys(self, own: Tensor, rows: Samples) -> tuple[Tensor, Samples]:
        """This process's keys, then the queue."""
        self._fresh = own, rows
        # The other processes' fresh keys are no candidates: the queue has them in the next step.
        queued = self.queue.keys.to(own.dtype)
        return torch.cat([own, queued]), rows.joined(self.queue.samples())

    def pairs(self, anchors: Samples, candidates: Samples) -> Pairs:
        """Positives are the keys of the video's other clips, negatives the queue's other videos."""
        video, fresh = anchors.same(candidates, "videos"), candidates.views != OLD
        positives = video & fresh & ~anchors.same(candidates, "views")
        return Pairs(positives, (video | fresh) & ~positives)

    def forward(self, batch: ClipBatch) -> dict[str, Metric]:
        """The loss; then the keys of all processes go into the queue."""
        outputs = super().forward(batch)
        # Only now: in the queue of its own step a key would be a negative of its own video.
        keys, rows = self._fresh
        self.queue.push(self.distributed.gather(keys), rows.gathered(self.distributed.gather))
        return outputs


@METHODS.register("moco_v3", "MoCo v3 (Chen et al., 2021)")
class MoCoV3(KeyContrast):
    """Predicts the keys of a video's other clips, among the keys of all videos of the batch.

    Chen et al., "An Empirical Study of Training Self-Supervised Vision Transformers", ICCV 2021.
    Published for two clips a video, as whose loss this is, but for the factor of twice the
    temperature; with more it is ours: all keys of other view numbers share a softmax.
    """

    parts = ("predictor", "projector", "momentum_encoder")

    def contrast(self, batch: ClipBatch) -> Contrast:
        """Queries against the keys of all processes."""
        self.require_videos(batch)
        return super().contrast(batch)

    def candidates(self, *, videos: int, clips: int) -> int:
        """The keys of other view numbers."""
        return videos * (clips - 1)

    def keys(self, own: Tensor, rows: Samples) -> tuple[Tensor, Samples]:
        """The keys of all processes."""
        return self.distributed.gather(own), rows.gathered(self.distributed.gather)

    def pairs(self, anchors: Samples, candidates: Samples) -> Pairs:
        """Positives are the video's other clips; keys of the same view number are left out."""
        # As published: view 1 is compared with keys of view 2 alone, and the other way round.
        same_view = anchors.same(candidates, "views")
        return Pairs(anchors.same(candidates, "videos") & ~same_view, same_view)
