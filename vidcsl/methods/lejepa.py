"""LeJEPA: clips of a video agree, while the embeddings of a batch follow a Gaussian (SIGReg)."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidcsl.methods.method import METHODS, ClipBatch, Method, embed
from vidcsl.methods.metrics import Metric
from vidcsl.models.encoder import Norms
from vidcsl.registry import Option
from vidcsl.seeding import torch_generator

# The characteristic functions are compared at 17 points from 0 to 3, as in the authors' code.
POINTS, LAST_POINT = 17, 3.0


@METHODS.register(
    "lejepa",
    "LeJEPA (Balestriero & LeCun, 2025)",
    GAUSSIAN=Option(
        0.02,
        "lejepa: weight of the distance to a Gaussian (lambda); the agreement weighs the rest",
        minimum=0,
        maximum=1,
    ),
    SLICES=Option(256, "lejepa: random directions that are compared in each step", minimum=1),
)
class LeJEPA(Method):
    """Pulls the clips of a video together and keeps the batch as spread as an isotropic Gaussian.

    Balestriero & LeCun, "LeJEPA: Provable and Scalable Self-Supervised Learning Without the
    Heuristics", 2025, in the form of the authors' minimal example: all views are global ones, and
    the embeddings are the projector's. It has no negatives, so none can be false.

    Args:
        encoder: clips -> features.
        projector: features -> embeddings, which are not normalised.
        gaussian: lambda in [0, 1].
        slices: directions of a step.
        seed: of the directions.
        options: see `Method`.
    """

    parts = ("projector",)
    head_norms = Norms(last=False)
    step: Tensor

    def __init__(
        self,
        encoder: nn.Module,
        projector: nn.Module,
        *,
        gaussian: float = 0.02,
        slices: int = 256,
        seed: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(encoder, **options)
        self.projector = projector
        self.gaussian, self.slices, self.seed = gaussian, slices, seed
        # Kept in checkpoints: a resumed run draws the directions that come next.
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def forward(self, batch: ClipBatch) -> dict[str, Metric]:
        """Both terms, weighted, over the batch of all processes."""
        embeddings = embed(nn.Sequential(self.encoder, self.projector), batch.clips, unit=False)
        described = self.describe(F.normalize(embeddings, dim=2), batch)
        # The same directions on every process, and others in each step.
        generator = torch_generator(self.seed, int(self.step), "directions")
        directions = torch.randn(embeddings.shape[2], self.slices, generator=generator)
        with torch.autocast(embeddings.device.type, enabled=False):
            # Each process computes the whole loss: the gradients that they send back for a row add
            # up to as many times its gradient as DDP divides by.
            everyones = self.distributed.gather(embeddings)
            disagreement = (everyones - everyones.mean(dim=1, keepdim=True)).square().mean()
            distance = sigreg(everyones, F.normalize(directions, dim=0).to(everyones))
            loss = self.gaussian * distance + (1 - self.gaussian) * disagreement
        return {"loss": loss, **described}

    def after_step(self, progress: float) -> None:  # noqa: ARG002
        """Count the steps."""
        self.step += 1


def sigreg(embeddings: Tensor, directions: Tensor) -> Tensor:
    """Sketched isotropic Gaussian regularisation: how far the embeddings are from N(0, 1).

    The Epps-Pulley statistic of the embeddings along each direction, averaged over directions and
    views: N times the squared distance of the empirical characteristic function from exp(-t^2 / 2),
    integrated over t in [-3, 3] with weight exp(-t^2 / 2) by the trapezoidal rule. Both functions
    are even in t or odd, so half of the integral is computed and doubled.

    Args:
        embeddings: `[B, V, P]`.
        directions: unit columns `[P, K]`.
    """
    points = torch.linspace(0, LAST_POINT, POINTS).to(embeddings)
    gaussian = (-points.square() / 2).exp()
    weights = torch.full_like(points, 2 * LAST_POINT / (POINTS - 1))
    weights[[0, -1]] /= 2
    angles = (embeddings @ directions)[..., None] * points  # [B, V, K, T]
    distance = (angles.cos().mean(dim=0) - gaussian).square() + angles.sin().mean(dim=0).square()
    return len(embeddings) * (distance @ (weights * gaussian)).mean()
