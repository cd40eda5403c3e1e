"""The contract of a pretraining method, the registry of methods, and the momentum encoder."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidcsl.distributed import DistributedContext
from vidcsl.errors import Diverged, UserError
from vidcsl.methods.false_negatives.detector import Samples
from vidcsl.methods.losses import at_least_float32
from vidcsl.methods.metrics import Metric, describe_batch
from vidcsl.models.batchnorm import CLEAN
from vidcsl.models.encoder import Norms
from vidcsl.registry import Option, Registry

# Momentum as a function of its first value and the fraction of the training run that is done.
SCHEDULES: dict[str, Callable[[float, float], float]] = {
    "constant": lambda first, _progress: first,
    # Grill et al. (BYOL), 2020; Feichtenhofer et al., 2021: rises to 1 along half a cosine.
    "cosine": lambda first, progress: 1 - (1 - first) * (math.cos(math.pi * progress) + 1) / 2,
}

METHODS: "Registry[type[Method]]" = Registry(
    "METHOD.NAME",
    default="simclr",
    meaning="pretraining method",
    shared={
        "PUBLISHED": Option(
            False,
            "rocl, advcl, deacl, dynacl, trades: compute the loss as the authors' code does where "
            "vidcsl's differs (see docs/adversarial.md)",
        ),
        "TEMPERATURE": Option(
            0.1, "temperature of the contrastive losses and of swav", minimum=1e-4
        ),
        "PROJECTOR_LAYERS": Option(2, "layers of the projector; 0: no projector", minimum=0),
        "PROJECTOR_HIDDEN": Option(512, "width of the projector's hidden layers", minimum=1),
        "PROJECTOR_DIM": Option(128, "length of an embedding", minimum=1),
        "PREDICTOR_LAYERS": Option(2, "byol, moco_v3: layers of the predictor", minimum=1),
        "PREDICTOR_HIDDEN": Option(
            512, "byol, moco_v3: width of the predictor's hidden layers", minimum=1
        ),
        "MOMENTUM": Option(
            0.99,
            "momentum of the momentum encoder at the start of the training run",
            minimum=0,
            maximum=1,
        ),
        "MOMENTUM_SCHEDULE": Option(
            "cosine",
            "how that momentum changes: it rises to 1 along half a cosine, or stays constant",
            ("cosine", "constant"),
        ),
    },
)


@dataclass(frozen=True)
class ClipBatch:
    """Augmented views of a batch of videos.

    Args:
        clips: float `[B, V, 3, T, S, S]` in [0, 1].
        labels, groups, videos: int64 `[B]`; -1 where unknown.
        progress: fraction of the training run that is done, from 0 to 1.
    """

    clips: Tensor
    labels: Tensor
    groups: Tensor
    videos: Tensor
    progress: float = 0.0

    def samples(self, views: int) -> Samples:
        """What is known of the first `views` views, `[B * views]`, those of a video in a row."""
        return Samples(
            self.videos.repeat_interleave(views),
            self.groups.repeat_interleave(views),
            self.labels.repeat_interleave(views),
            torch.arange(views, device=self.videos.device).repeat(len(self.videos)),
        )


class Method(nn.Module):
    """An objective with its heads and state around an encoder, which is the part that is kept.

    A subclass declares what it needs; `build_method` then builds that and passes it as arguments.

    Attributes:
        parts: what is built beside the encoder, in this order, which fixes the random weights:
            "projector", "predictor", "momentum_encoder", "queue", "teacher" (a frozen encoder).
        published_parts: what is built beside these with METHOD.PUBLISHED.
        published_start: with METHOD.PUBLISHED, at how many times N(0, 1) from the clean clip its
            attack starts; 0: wherever the solver starts.
        head_norms: BatchNorm in projector and predictor.
        needs: what the training list must give: "labels", or "hierarchy" (more videos than the
            `clusters` of its finest level).
        least_views: clips of each video that it takes at least.
        kept: children that evaluation needs; all else serves the training run only.
        replays: steps of the optimiser with each batch, one after the other.
        batchnorm_names: the BatchNorms of the encoder that it switches between, an auxiliary one
            for perturbed clips (AdvProp); one: it switches none.
        projector_batchnorm_names: those that its projector has.
    """

    parts: tuple[str, ...] = ()
    published_parts: tuple[str, ...] = ()
    published_start: float = 0.0
    head_norms: Norms = Norms()
    needs: tuple[str, ...] = ()
    least_views: int = 2
    kept: tuple[str, ...] = ("encoder",)
    replays: int = 1
    batchnorm_names: tuple[str, ...] = (CLEAN,)
    projector_batchnorm_names: tuple[str, ...] = (CLEAN,)

    def __init__(
        self, encoder: nn.Module, *, distributed: DistributedContext | None = None
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.distributed = distributed or DistributedContext()

    @classmethod
    def check_published(cls, *, clips: int, voters: int) -> None:
        """Raise a UserError where METHOD.PUBLISHED cannot be computed from so many clips.

        Args:
            clips: of each video, those that vote alone included.
            voters: clips that only vote on false negatives.
        """

    def forward(self, batch: ClipBatch) -> dict[str, Metric]:
        """`{"loss": scalar, ...}`; everything else is detached and to be logged."""
        raise NotImplementedError

    def after_step(self, progress: float) -> None:
        """Called after each step of the optimiser, with the progress of that step's batch."""

    def encoder_replaced(self) -> None:
        """Called when the encoder's weights were loaded from elsewhere: begin from these."""

    def loss_of_chance(self, *, videos: int, clips: int) -> float | None:  # noqa: ARG002
        """The loss of an encoder to which all clips are alike; None where that is not known.

        Args:
            videos: of a step, of all processes together.
            clips: of each that learn.
        """
        return None

    def require_videos(self, batch: ClipBatch, *, missing: str = "negatives") -> None:
        """Raise a UserError where a batch of one video leaves nothing to learn from."""
        if len(batch.videos) * self.distributed.size < 2:
            raise UserError(f"a batch of one video has no {missing}: set TRAIN.BATCH to at least 2")

    def describe(self, embeddings: Tensor, batch: ClipBatch) -> dict[str, Metric]:
        """The geometry of the embeddings `[B, V, P]` of all processes.

        Raises:
            Diverged: on every process, where an embedding of any of them is not finite.
        """
        # Gathered first: a process that raised alone would leave the others in a collective.
        everyones = self.distributed.gather(embeddings.detach())
        broken = int((~everyones.isfinite()).any(dim=2).sum())
        if broken:
            raise Diverged(f"{broken} of {everyones.shape[:2].numel()} embeddings are not finite")
        with torch.autocast(everyones.device.type, enabled=False):
            return describe_batch(everyones, self.distributed.gather(batch.labels))


def embed(network: nn.Module, clips: Tensor, *, unit: bool = True) -> Tensor:
    """Embeddings `[B, V, P]` of clips `[B, V, 3, T, S, S]`, in float32 or wider.

    Args:
        network: clips -> embeddings.
        clips: of a batch.
        unit: scale each embedding to length 1.
    """
    # Before the norm: bfloat16 has 8 bits, so cosines near 1 would fall onto a few values.
    outputs = at_least_float32(network(clips.flatten(0, 1))).unflatten(0, clips.shape[:2])
    return F.normalize(outputs, dim=2) if unit else outputs


class MomentumEncoder(nn.Module):
    """Starts as a copy of encoder and projector and follows them: w' <- m w' + (1 - m) w.

    Its weights get no gradient. Its BatchNorms see the batch, as those of MoCo v3 and BYOL do, and
    keep running statistics of their own.

    Args:
        encoder, projector: what it is a copy of; each step they are given to `follow` again.
        momentum: m at the start.
        momentum_schedule: one of SCHEDULES.
    """

    def __init__(
        self,
        encoder: nn.Module,
        projector: nn.Module,
        *,
        momentum: float,
        momentum_schedule: str = "cosine",
    ) -> None:
        super().__init__()
        self.encoder = copy.deepcopy(encoder).requires_grad_(False)
        self.projector = copy.deepcopy(projector).requires_grad_(False)
        self.momentum, self.momentum_schedule = momentum, momentum_schedule

    @torch.no_grad()
    def forward(self, clips: Tensor) -> Tensor:
        """Embeddings `[N, P]` of clips `[N, 3, T, S, S]`, before normalisation."""
        embeddings: Tensor = self.projector(self.encoder(clips))
        return embeddings

    def restart(self, encoder: nn.Module, projector: nn.Module) -> None:
        """Be a copy again."""
        # Running statistics as well: `follow` leaves them, so they would be those of the start.
        self.encoder.load_state_dict(encoder.state_dict())
        self.projector.load_state_dict(projector.state_dict())

    @torch.no_grad()
    def follow(self, encoder: nn.Module, projector: nn.Module, *, progress: float) -> None:
        """Move towards the weights of `encoder` and `projector`, after a step of the optimiser."""
        momentum = SCHEDULES[self.momentum_schedule](self.momentum, progress)
        mine: list[Tensor] = [*self.encoder.parameters(), *self.projector.parameters()]
        theirs: list[Tensor] = [*encoder.parameters(), *projector.parameters()]
        if mine:  # one call for all weights: hundreds of small ones cost more than their arithmetic
            torch._foreach_lerp_(mine, theirs, 1 - momentum)
