"""What a pretraining method is."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidcsl.errors import Diverged
from vidcsl.models.dual_norm import CLEAN
from vidcsl.objectives.false_negatives import Samples
from vidcsl.objectives.geometry import describe_batch
from vidcsl.objectives.losses import at_least_float32
from vidcsl.objectives.metrics import Metric
from vidcsl.objectives.world import Alone, World


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

    def __init__(self, encoder: nn.Module, *, world: World | None = None) -> None:
        super().__init__()
        self.encoder = encoder
        self.world = world or Alone()

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
        everyones = self.world.gather(embeddings.detach())
        broken = int((~everyones.isfinite()).any(dim=2).sum())
        if broken:
            raise Diverged(f"{broken} of {everyones.shape[:2].numel()} embeddings are not finite")
        with torch.autocast(everyones.device.type, enabled=False):
            return describe_batch(everyones, self.world.gather(batch.labels))


def embed(network: nn.Module, clips: Tensor) -> Tensor:
    """Unit embeddings `[B, V, P]` of clips `[B, V, 3, T, S, S]`, in float32 or wider."""
    outputs = network(clips.flatten(0, 1))
    return F.normalize(at_least_float32(outputs), dim=1).unflatten(0, clips.shape[:2])
