"""DeACL: a robust student learns what a frozen teacher makes of clean clips."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidcsl.methods.adversarial.inner import Attacking, attack_seeds
from vidcsl.methods.losses import at_least_float32
from vidcsl.methods.method import METHODS, ClipBatch
from vidcsl.methods.metrics import Metric
from vidcsl.registry import Option

ROBUST = 2.0  # weight of what the student makes of perturbed clips

TEACHER = Option("", "deacl: FORMAT:PATH of the frozen teacher, as MODEL.WEIGHTS", path=True)


@METHODS.register("deacl", "DeACL (Zhang et al., 2022)", **{"ADVERSARIAL.TEACHER": TEACHER})
class DeACL(Attacking):
    """L = -cos(s(x), t(x)) - 2 cos(s(x + delta), s(x)), where delta lowers cos(s(x + delta), t(x)).

    Zhang et al., "Decoupled Adversarial Contrastive Learning for Self-supervised Adversarial
    Robustness", ECCV 2022. It has no negatives, so none can be false; the teacher may have been
    trained with false negatives removed.

    The authors' code, which `published` equals, embeds clean and perturbed clips in one pass, so
    that they share their BatchNorm statistics; ours has two. What stays different: views are
    augmented as for every method, theirs weakly (crop and flip).

    Args:
        encoder: the student s.
        teacher: t, frozen and in eval mode.
        published: embed clean and perturbed clips in one pass.
        options: see `Attacking`.
    """

    parts = ("teacher",)
    least_views = 1

    def __init__(
        self, encoder: nn.Module, *, teacher: nn.Module, published: bool = False, **options: Any
    ) -> None:
        super().__init__(encoder, **options)
        self.published = published
        self.teacher = teacher.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "DeACL":
        """The teacher stays in eval mode."""
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(self, batch: ClipBatch) -> dict[str, Metric]:
        """Both terms, averaged over all views."""
        shape = batch.clips.shape[:2]
        clips = batch.clips.flatten(0, 1)
        # Clean clips for the teacher: it is not robust, and would pass on how it is fooled.
        with torch.no_grad():
            taught = _unit(self.teacher(clips))
        perturbed = self.attack(
            self.encoder,
            clips,
            lambda outputs: -_cosine(_unit(outputs), taught),
            seeds=attack_seeds(batch, views=shape[1], seed=self.seed),
            progress=batch.progress,
        )
        if self.published:
            clean, adversarial = _unit(self.encoder(torch.cat([clips, perturbed]))).chunk(2)
        else:
            clean, adversarial = _unit(self.encoder(clips)), _unit(self.encoder(perturbed))
        described = self.describe(clean.unflatten(0, shape), batch)
        distilled, robust = _cosine(clean, taught).mean(), _cosine(adversarial, clean).mean()
        return {
            "loss": -distilled - ROBUST * robust,
            "teacher_cosine": distilled.detach(),
            "adversarial_cosine": robust.detach(),
            **described,
        }


def _unit(features: Tensor) -> Tensor:
    return F.normalize(at_least_float32(features), dim=1)


def _cosine(one: Tensor, other: Tensor) -> Tensor:
    """Cosines `[N]` of unit rows."""
    return (one * other).sum(dim=1)
