"""A slow copy of the encoder and its projector, which averages their weights over training."""

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

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
