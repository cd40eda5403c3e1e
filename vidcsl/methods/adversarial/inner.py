"""The attack inside a training step, as the methods see it."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from vidcsl.distributed import DistributedContext
from vidcsl.methods.false_negatives.detector import distinct
from vidcsl.methods.method import ClipBatch, Method
from vidcsl.seeding import seed_of

# ----------------------------------------------------------------------
# What adversarial methods share: the attack that they are handed, its seeds and its replays.


class InnerAttack(Protocol):
    """Perturbs clips so that a loss of what a network makes of them rises."""

    @property
    def replays(self) -> int:
        """Steps of the training with each batch, between which its perturbation climbs."""

    def __call__(
        self,
        network: nn.Module,
        clips: Tensor,
        loss: Callable[[Tensor], Tensor],
        *,
        seeds: Sequence[int],
        progress: float = 1.0,
        share: float = 1.0,
    ) -> Tensor:
        """The perturbed clips.

        The network is in eval mode meanwhile, and left as it was.

        Args:
            network: clips `[N, 3, T, S, S]` -> `[N, D]`.
            clips: float in [0, 1] `[N, 3, T, S, S]`.
            loss: `[N, D] -> [N]`, what is maximised. It is asked equally often on all processes.
            seeds: `[N]`, of all that is random.
            progress: share of the training that is done.
            share: of the budget that is due.
        """

    def climb(self) -> None:
        """Called after each step of the training, whose backward pass went through the clips."""


class Attacking(Method):
    """A method that learns from clips which it perturbs first.

    Args:
        modules, options: see the method that it is made of.
        attack: see `InnerAttack`.
        seed: of all that is random in the attack.
    """

    def __init__(
        self, *modules: nn.Module, attack: InnerAttack, seed: int = 0, **options: Any
    ) -> None:
        super().__init__(*modules, **options)
        self.attack, self.seed, self.replays = attack, seed, attack.replays

    def after_step(self, progress: float) -> None:
        """Let a perturbation climb that stays for another step."""
        super().after_step(progress)
        self.attack.climb()


def attack_seeds(
    batch: ClipBatch, *, views: int, seed: int, purpose: str = "inner attack"
) -> list[int]:
    """A seed for each clip `[B * views]`, by the run's, the step, video, view and purpose."""
    step = int(batch.progress * 1e9)
    return [
        seed_of(seed, step, video, view, purpose)
        for video in batch.videos.tolist()
        for view in range(views)
    ]


@contextmanager
def in_eval(*modules: nn.Module) -> Iterator[None]:
    """Within the block the modules are in eval mode."""
    modes = [(each, each.training) for module in modules for each in module.modules()]
    try:
        for module in modules:
            module.eval()
        yield
    finally:
        for each, training in modes:
            each.training = training


# ----------------------------------------------------------------------
# A budget for each video, as large as the network bears.

LEVELS = 4  # steps between nothing and the whole budget


class Budgets(nn.Module):
    """Rises a step where all clips of a video are still named right under attack, else falls one.

    Balaji et al., "Instance Adaptive Adversarial Training", 2019; with steps of a quarter of the
    attack's budget, so that clips of one budget are attacked together. (Kinfu and Vidal adapt, for
    video, a distribution from which all clips draw their budget.)

    Args:
        videos: length of the training list.
        world: the processes that train together.
    """

    level: Tensor

    def __init__(self, *, videos: int, distributed: DistributedContext | None = None) -> None:
        super().__init__()
        self.distributed = distributed or DistributedContext()
        self.register_buffer("level", torch.ones(videos, dtype=torch.long))

    def share(self, videos: Tensor) -> Tensor:
        """Of the attack's budget, float `[N]` in [0, 1]."""
        return self.level[videos] / LEVELS

    @torch.no_grad()
    def learn(self, videos: Tensor, right: Tensor) -> None:
        """Which videos `[N]` were named right, bool `[N]`; on all processes alike."""
        everyone, named = self.distributed.gather(videos), self.distributed.gather(right.long())
        seen, first = distinct(everyone)
        self.level[seen] = (self.level[seen] + 2 * named[first] - 1).clamp(0, LEVELS)
