"""The attack inside a training step, as the methods see it: its options, seeds and replays."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from torch import Tensor, nn

from vidcsl.methods.method import ClipBatch, Method
from vidcsl.registry import Option
from vidcsl.seeding import seed_of

OPTIONS = {
    "ADVERSARIAL.ATTACK": Option(
        "pgd/linf",
        "attack in each step of an adversarial method, SOLVER[:option=value,...]/THREAT[:option="
        "value,...] as in ATTACK.RUNS; the method defines the loss that it maximises",
    ),
    "ADVERSARIAL.EPS": Option(
        2.0, "budget if ATTACK gives none; for linf and flicker in 1/255", minimum=0
    ),
    "ADVERSARIAL.STEPS": Option(5, "steps of the solver if ATTACK gives none", minimum=1),
    "ADVERSARIAL.RAMP": Option(
        0.0,
        "fraction of the training run over which the budget rises from 0 (a curriculum); 0: the "
        "whole budget from the start",
        minimum=0,
        maximum=1,
    ),
    "ADVERSARIAL.EVERY": Option(
        1, "attack every n-th frame; the frames between copy its perturbation", minimum=1
    ),
    "ADVERSARIAL.SCALE": Option(
        1.0, "attack frames of this fraction of their side", minimum=0.1, maximum=1
    ),
    "ADVERSARIAL.COARSE_UNTIL": Option(
        1.0,
        "fraction of the training run in which EVERY and SCALE hold; after it the attack uses all "
        "pixels",
        minimum=0,
        maximum=1,
    ),
    "ADVERSARIAL.PRECISION": Option(
        "auto", "precision of the attack; auto: as in pretraining", ("auto", "float32")
    ),
    "ADVERSARIAL.REPLAYS": Option(
        1,
        "training steps with each batch; above 1 their backward passes move the perturbation "
        "instead of an attack (Free AT); divide TRAIN.EPOCHS by it",
        minimum=1,
    ),
}


class InnerMaximiser(Protocol):
    """Perturbs clips so that a loss of a network's outputs rises."""

    @property
    def replays(self) -> int:
        """Training steps with each batch, between which its perturbation ascends."""

    def __call__(
        self,
        network: nn.Module,
        clips: Tensor,
        loss: Callable[[Tensor], Tensor],
        *,
        seeds: Sequence[int],
        progress: float = 1.0,
        fraction: float = 1.0,
    ) -> Tensor:
        """The perturbed clips.

        The network is in eval mode meanwhile, and left as it was.

        Args:
            network: clips `[N, 3, T, S, S]` -> `[N, D]`.
            clips: float in [0, 1] `[N, 3, T, S, S]`.
            loss: `[N, D] -> [N]`, what is maximised. It is called equally often on all processes.
            seeds: `[N]`, of all that is random.
            progress: fraction of the training run that is done.
            fraction: of the budget that may be used.
        """

    def ascend(self) -> None:
        """Called after each training step, whose backward pass went through the clips."""


class Attacking(Method):
    """A method that learns from clips which it perturbs first.

    Args:
        modules, options: see the method that it is made of.
        attack: see `InnerMaximiser`.
        seed: of all that is random in the attack.
    """

    def __init__(
        self, *modules: nn.Module, attack: InnerMaximiser, seed: int = 0, **options: Any
    ) -> None:
        super().__init__(*modules, **options)
        self.attack, self.seed, self.replays = attack, seed, attack.replays

    def after_step(self, progress: float) -> None:
        """Let a perturbation ascend that stays for another step."""
        super().after_step(progress)
        self.attack.ascend()


def attack_seeds(
    batch: ClipBatch, *, views: int, seed: int, purpose: str = "inner attack"
) -> list[int]:
    """A seed for each clip `[B * views]`, by the run's, the step, video, view and purpose."""
    # By step and video, not by the place in the batch: a resumed run, or one on another number of
    # processes, draws the same. The progress names the step.
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
