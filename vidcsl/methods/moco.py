"""MoCo v2 and v3: keys of a momentum encoder, with a queue or without."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidcsl.errors import UserError
from vidcsl.methods.contrastive import Contrast, ContrastiveMethod
from vidcsl.methods.false_negatives import Samples
from vidcsl.methods.losses import Pairs, at_least_float32
from vidcsl.methods.method import ClipBatch, Metric, MomentumEncoder

# ----------------------------------------------------------------------
# The newest keys of earlier steps, and what is known of the videos they are of.

OLD = -1  # the view number of a queued key: it is no view of the current batch


class KeyQueue(nn.Module):
    """First in, first out, the same on all processes.

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
        """Of the K keys."""
        return Samples(
            self.videos, self.groups, self.labels, views=torch.full_like(self.videos, OLD)
        )

    @torch.no_grad()
    def push(self, keys: Tensor, samples: Samples) -> None:
        """Put the keys `[N, P]` of all processes in the place of the oldest ones.

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


# ----------------------------------------------------------------------
# Queries and keys: what the methods share that learn from a momentum encoder's view of others.


class KeyContrast(ContrastiveMethod):
    """Every clip is a query, compared with keys that the momentum encoder makes.

    Args:
        encoder, projector: as of every contrastive method.
        predictor: embeddings -> queries, before normalisation.
        teacher: the momentum encoder, which makes the keys.
        options: see `ContrastiveMethod`.
    """

    teacher: MomentumEncoder

    def __init__(
        self,
        encoder: nn.Module,
        projector: nn.Module,
        *,
        predictor: nn.Module,
        teacher: MomentumEncoder,
        **options: Any,
    ) -> None:
        super().__init__(encoder, projector, teacher=teacher, **options)
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
        taught = self.taught(batch.clips)  # [B, V + voters, P]
        rows = batch.samples(learning)
        keys, columns = self.keys(taught[:, :learning].flatten(0, 1), rows)
        voices = taught
        if self.judge == "online":
            asked = queries.detach().unflatten(0, clips.shape[:2])
            voices = torch.cat([asked, taught[:, learning:]], dim=1)
        return Contrast(
            anchors=queries,
            candidates=keys,
            rows=rows,
            columns=columns,
            support=voices,
            voted_on=keys,
        )


# ----------------------------------------------------------------------
# MoCo v2: clips are compared with a queue of keys, many more than a batch holds.
#
# He et al., "Momentum Contrast for Unsupervised Visual Representation Learning", CVPR 2020, with
# the projector of Chen et al., "Improved Baselines with Momentum Contrastive Learning", 2020.
# Every clip is query and key, of any number of clips a video, and all keys are queued:
# Feichtenhofer et al., CVPR 2021, equation 1. BatchNorm over all processes makes the shuffling of
# batches needless.


class MoCoV2(KeyContrast):
    """Finds the keys of a video's other clips among the keys of earlier videos.

    Old keys of the anchor's own video, which the queue of a small data set holds, are left out.

    Args:
        encoder, projector, teacher: see `KeyContrast`.
        queue: of keys as long as the projector's outputs.
        options: see `ContrastiveMethod`.
    """

    def __init__(
        self, encoder: nn.Module, projector: nn.Module, *, queue: KeyQueue, **options: Any
    ) -> None:
        super().__init__(encoder, projector, predictor=nn.Identity(), **options)
        self.queue = queue
        self._fresh: tuple[Tensor, Samples]

    def keys(self, own: Tensor, rows: Samples) -> tuple[Tensor, Samples]:
        """This process's keys, then the queue."""
        self._fresh = own, rows
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
        keys, rows = self._fresh
        self.queue.push(self.distributed.gather(keys), rows.gathered(self.distributed.gather))
        return outputs


# ----------------------------------------------------------------------
# MoCo v3: clips are compared with what a momentum encoder makes of the batch's other clips.
#
# Chen et al., "An Empirical Study of Training Self-Supervised Vision Transformers", ICCV 2021. With
# more than two clips a video: Feichtenhofer et al., CVPR 2021, equation 1. The paper's factor of
# twice the temperature on the loss is left out.


class MoCoV3(KeyContrast):
    """Predicts the keys of a video's other clips, among the keys of all videos of the batch."""

    def contrast(self, batch: ClipBatch) -> Contrast:
        """Queries against the keys of all processes."""
        self.require_videos(batch)
        return super().contrast(batch)

    def keys(self, own: Tensor, rows: Samples) -> tuple[Tensor, Samples]:
        """The keys of all processes."""
        return self.distributed.gather(own), rows.gathered(self.distributed.gather)

    def pairs(self, anchors: Samples, candidates: Samples) -> Pairs:
        """Positives are the video's other clips; keys of the same view number are left out."""
        same_view = anchors.same(candidates, "views")
        return Pairs(anchors.same(candidates, "videos") & ~same_view, same_view)
