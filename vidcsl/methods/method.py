"""What every method shares: metrics, geometry of a batch, momentum encoder, the contract."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidcsl.distributed import DistributedContext
from vidcsl.errors import Diverged
from vidcsl.methods.false_negatives import Samples
from vidcsl.methods.losses import alignment, at_least_float32, uniformity
from vidcsl.models.norm_sets import CLEAN

# ----------------------------------------------------------------------
# What a method reports beside its loss, in a form that stays exact over steps and processes.


@dataclass(frozen=True)
class Ratio:
    """`part / whole`, both summed over steps and processes before the division.

    Args:
        part, whole: scalars, or `[classes + 1]` with one entry for each class of anchors and a last
            one for the unlabelled.
    """

    part: Tensor
    whole: Tensor


Metric = Tensor | Ratio
"""A scalar, to be averaged over steps and processes, or a share."""


# ----------------------------------------------------------------------
# How unit embeddings lie on the sphere: the paper's explanation of fragility, in numbers.
#
# Contrastive learning spreads the videos of a class evenly over the sphere; supervised learning
# gathers them, so that classes stand apart.

MOST_ROWS = 1024  # of a batch that are described: enough for a mean, and cheap


def effective_rank(vectors: Tensor) -> Tensor:
    """Exponential of the entropy of the covariance's spectrum, from 1 to P, of `[N, P]`.

    Roy & Vetterli, "The effective rank", EUSIPCO 2007.
    """
    centred = at_least_float32(vectors - vectors.mean(dim=0))
    if len(centred) < centred.shape[1]:
        centred = centred.T  # the same spectrum from the smaller product
    spectrum = torch.linalg.eigvalsh(centred.T @ centred).clamp(min=0)
    share = spectrum / spectrum.sum().clamp(min=1e-12)
    return torch.special.entr(share).sum().exp()


def class_margins(vectors: Tensor, labels: Tensor) -> Tensor:
    """How much nearer each vector is to the centre of its class than to any other's, `[N]`.

    The difference of two cosines, in [-2, 2]; below 0 the vector lies nearer another class. Its own
    centre is taken without it. NaN where its class has no other member, or there is no other class.

    Args:
        vectors: unit `[N, P]`.
        labels: int64 `[N]`, none of them unknown.
    """
    _, place = labels.unique(return_inverse=True)
    sums = vectors.new_zeros(int(place.max()) + 1, vectors.shape[1]).index_add(0, place, vectors)
    centres = torch.nn.functional.normalize(sums, dim=1)
    cosines = vectors @ centres.T
    others = cosines.scatter(1, place[:, None], -torch.inf).amax(dim=1)
    without = sums[place] - vectors
    alone = place.bincount()[place] < 2
    own = (vectors * torch.nn.functional.normalize(without, dim=1)).sum(dim=1)
    undefined = alone | others.isinf()
    return torch.where(undefined, torch.nan, own - others)


@torch.no_grad()
def describe_batch(embeddings: Tensor, labels: Tensor) -> dict[str, Metric]:
    """Alignment, uniformity, effective rank, class similarities and margin of one step.

    Args:
        embeddings: unit `[B, V, P]`, of all processes.
        labels: int64 `[B]`, -1 where unknown.
    """
    views, labels = at_least_float32(embeddings[:MOST_ROWS].detach()), labels[:MOST_ROWS]
    described: dict[str, Metric] = {}
    if len(views) > 1:
        first = views[:, 0]
        described["uniformity"] = uniformity(first)
        described["effective_rank"] = effective_rank(first)
        described |= _describe_classes(first, labels)
    if views.shape[1] > 1:
        described["alignment"] = alignment(views[:, 0], views[:, 1])
    return described


def _describe_classes(vectors: Tensor, labels: Tensor) -> dict[str, Metric]:
    similarities = vectors @ vectors.T
    known = (labels[:, None] >= 0) & (labels[None, :] >= 0)
    pair = torch.ones_like(known).triu(diagonal=1) & known  # each once, none with itself
    same = labels[:, None] == labels[None, :]
    # A label of its own for each unlabelled one: it makes no margin and is in no one's way.
    spread = torch.where(labels < 0, -1 - torch.arange(len(labels), device=labels.device), labels)
    margins = class_margins(vectors, spread)
    judged = ~margins.isnan()
    return {
        "same_class_similarity": _mean(similarities, same & pair),
        "other_class_similarity": _mean(similarities, ~same & pair),
        "margin": Ratio(margins.nan_to_num().sum(), judged.sum()),
    }


def _mean(values: Tensor, chosen: Tensor) -> Ratio:
    return Ratio(torch.where(chosen, values, 0.0).sum(), chosen.sum())


# ----------------------------------------------------------------------
# A slow copy of the encoder and its projector, which averages their weights over training.

# Momentum as a function of its first value and the share of the training that is done.
SCHEDULES: dict[str, Callable[[float, float], float]] = {
    "constant": lambda first, _progress: first,
    # Grill et al. (BYOL), 2020; Feichtenhofer et al., 2021: rises to 1 along half a cosine.
    "cosine": lambda first, progress: 1 - (1 - first) * (math.cos(math.pi * progress) + 1) / 2,
}


class MomentumEncoder(nn.Module):
    """Starts as a copy of encoder and projector and follows them: w' <- m w' + (1 - m) w.

    Its weights get no gradient. Its BatchNorms see the batch, as those of MoCo v3 and BYOL do, and
    keep running statistics of their own.

    Args:
        encoder, projector: what it is a copy of; each step they are given to `follow` again.
        momentum: m at the start.
        schedule: one of SCHEDULES.
    """

    def __init__(
        self, encoder: nn.Module, projector: nn.Module, *, momentum: float, schedule: str = "cosine"
    ) -> None:
        super().__init__()
        self.encoder = copy.deepcopy(encoder).requires_grad_(False)
        self.projector = copy.deepcopy(projector).requires_grad_(False)
        self.momentum, self.schedule = momentum, schedule

    @torch.no_grad()
    def forward(self, clips: Tensor) -> Tensor:
        """Embeddings `[N, P]` of clips `[N, 3, T, S, S]`, before normalisation."""
        embeddings: Tensor = self.projector(self.encoder(clips))
        return embeddings

    def restart(self, encoder: nn.Module, projector: nn.Module) -> None:
        """Be a copy again."""
        self.encoder.load_state_dict(encoder.state_dict())
        self.projector.load_state_dict(projector.state_dict())

    @torch.no_grad()
    def follow(self, encoder: nn.Module, projector: nn.Module, *, progress: float) -> None:
        """Move towards the weights of `encoder` and `projector`, after a step of the optimiser."""
        momentum = SCHEDULES[self.schedule](self.momentum, progress)
        pairs = ((self.encoder, encoder), (self.projector, projector))
        mine: list[Tensor] = [weight for copied, _ in pairs for weight in copied.parameters()]
        theirs: list[Tensor] = [weight for _, online in pairs for weight in online.parameters()]
        if mine:
            torch._foreach_lerp_(mine, theirs, 1 - momentum)


# ----------------------------------------------------------------------
# What a pretraining method is.


@dataclass(frozen=True)
class ClipBatch:
    """Augmented views of a batch of videos.

    Args:
        clips: float `[B, V, 3, T, S, S]` in [0, 1].
        labels, groups, videos: int64 `[B]`; -1 where unknown.
        progress: share of the training that is done, from 0 to 1.
    """

    clips: Tensor
    labels: Tensor
    groups: Tensor
    videos: Tensor
    progress: float = 0.0

    def samples(self, views: int) -> Samples:
        """Of the first `views` views of each video, `[B * views]`, a video's own in a row."""
        numbers = torch.arange(views, device=self.videos.device).repeat(len(self.videos))
        videos, groups, labels = (
            each.repeat_interleave(views) for each in (self.videos, self.groups, self.labels)
        )
        return Samples(videos, groups, labels, numbers)


class Method(nn.Module):
    """An objective with its heads and state around an encoder, which is the part that is kept.

    Attributes:
        kept: children that evaluation needs; all else serves the training only.
        replays: steps of the optimiser that are made with each batch, one after the other.
        norm_sets: the sets of BatchNorms that it switches between; one: it switches none.
        projector_sets: those that its projector has.
    """

    kept: tuple[str, ...] = ("encoder",)
    replays: int = 1
    norm_sets: tuple[str, ...] = (CLEAN,)
    projector_sets: tuple[str, ...] = (CLEAN,)

    def __init__(
        self, encoder: nn.Module, *, distributed: DistributedContext | None = None
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.distributed = distributed or DistributedContext()

    def forward(self, batch: ClipBatch) -> dict[str, Metric]:
        """`{"loss": scalar, ...}`; everything else is detached and to be logged."""
        raise NotImplementedError

    def after_step(self, progress: float) -> None:
        """Called after each step of the optimiser, with the progress of that step's batch."""

    def encoder_replaced(self) -> None:
        """Called when the encoder's weights were loaded from elsewhere: begin from these."""

    def describe(self, embeddings: Tensor, batch: ClipBatch) -> dict[str, Metric]:
        """The geometry of the embeddings `[B, V, P]` of all processes.

        Raises:
            Diverged: on every process, where one of them is not finite.
        """
        everyones = self.distributed.gather(embeddings.detach())
        broken = int((~everyones.isfinite()).any(dim=2).sum())
        if broken:
            raise Diverged(f"{broken} of {everyones.shape[:2].numel()} embeddings are not finite")
        with torch.autocast(everyones.device.type, enabled=False):
            return describe_batch(everyones, self.distributed.gather(batch.labels))


def embed(network: nn.Module, clips: Tensor) -> Tensor:
    """Unit embeddings `[B, V, P]` of clips `[B, V, 3, T, S, S]`, in float32 or wider."""
    outputs = network(clips.flatten(0, 1))
    return F.normalize(at_least_float32(outputs), dim=1).unflatten(0, clips.shape[:2])
