"""What adversarial methods share: the attack that they are handed, and its seeds."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from torch import Tensor, nn

from vidcsl.objectives.method import ClipBatch
from vidcsl.seeding import seed_of


class InnerAttack(Protocol):
    """Perturbs clips so that a loss of what a network makes of them rises."""

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


def attack_seeds(batch: ClipBatch, *, views: int, seed: int) -> list[int]:
    """A seed for each clip `[B * views]`, which depends on the step, the video and the view."""
    step = int(batch.progress * 1e9)
    return [
        seed_of(seed, step, video, view, "inner attack")
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
