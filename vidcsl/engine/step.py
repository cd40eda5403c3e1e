"""One step of the optimiser, whatever it is computed in and spread over."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from vidcsl.data.loader import Batch
from vidcsl.engine.optim import set_lr
from vidcsl.engine.precision import Precision
from vidcsl.engine.weights import load_weights
from vidcsl.objectives import ClipBatch, Method
from vidcsl.objectives.metrics import Metric, Share
from vidcsl.pieces import cut_like, joined
from vidcsl.seeding import sample_seed

# (frames, sizes, seeds, progress) -> clips, see `vidcsl.augment`
Augmentation = Callable[[Tensor, Tensor, Tensor, float], Tensor]


def augmented(batch: Batch, augment: Augmentation, *, seed: int, progress: float) -> ClipBatch:
    """What a method learns from: a batch augmented on its device, by each video's own seed.

    Args:
        batch: of the loader.
        augment: makes its frames clips.
        seed: of the run.
        progress: share of the training that is done.
    """
    seeds = [sample_seed(seed, batch.epoch, video) for video in batch.indices.tolist()]
    return ClipBatch(
        clips=augment(batch.frames, batch.sizes, torch.tensor(seeds), progress),
        labels=batch.labels,
        groups=batch.groups,
        videos=batch.indices,
        progress=progress,
    )


@dataclass
class Stepper:
    """Forward, backward, clipping, optimiser, and what the method does after it.

    Args:
        method: encoder, heads and loss.
        optimiser: over its parameters.
        replica: what is called in the method's place, see `strategies`; by default the method.
        precision: what the forward pass computes in.
        clip_gradient: largest gradient norm; 0: not clipped.
    """

    method: Method
    optimiser: torch.optim.Optimizer
    replica: nn.Module | None = None
    precision: Precision = field(default_factory=Precision)
    clip_gradient: float = 0.0

    def __call__(self, batch: ClipBatch, *, lr: float) -> dict[str, Metric]:
        """What the method reports of this batch, before the step that it causes."""
        set_lr(self.optimiser, lr)
        scaler = self.precision.scaler
        self.method.train()
        with self.precision.autocast():
            outputs: dict[str, Metric] = (self.replica or self.method)(batch)
        self.optimiser.zero_grad(set_to_none=True)
        loss = outputs["loss"]
        assert isinstance(loss, Tensor)
        scaler.scale(loss).backward()
        scaler.unscale_(self.optimiser)
        outputs["gradient_norm"] = _finite(self._clip())
        scaler.step(self.optimiser)
        scaler.update()
        self.method.after_step(batch.progress)
        return outputs

    def _clip(self) -> Tensor:
        """Clip the gradients where that is wanted; their norm before."""
        if self.clip_gradient:
            return nn.utils.clip_grad_norm_(self.method.parameters(), self.clip_gradient)
        found = [p.grad for p in self.method.parameters() if p.grad is not None]
        return nn.utils.get_total_norm(found)

    def state(self) -> dict[str, Any]:
        """Weights, the optimiser's memory and the loss scale, for a checkpoint."""
        return {
            "method": self.method.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "precision": self.precision.state(),
        }

    def load(self, state: dict[str, Any], *, source: str) -> None:
        """Go on from `state`.

        Raises:
            UserError: it is of another architecture.
        """
        own = self.method.state_dict()
        weights = {name: cut_like(w, own.get(name)) for name, w in state["method"].items()}
        load_weights(self.method, weights, source=source)
        self.optimiser.load_state_dict(self._cut(state["optimiser"]))
        self.precision.load(state.get("precision", {}))

    def _cut(self, state: dict[str, Any]) -> dict[str, Any]:
        """The optimiser's memory of each parameter, cut up as that is."""
        parameters = [p for group in self.optimiser.param_groups for p in group["params"]]
        memory = {
            index: {
                key: cut_like(value, parameters[index]) if isinstance(value, Tensor) else value
                for key, value in of_one.items()
            }
            for index, of_one in state["state"].items()
        }
        return {**state, "state": memory}


def _finite(norm: Tensor) -> Share:
    """The norm, or nothing where float16 overflowed: such a step is left out, its scale lowered."""
    whole = joined(norm)
    finite = whole.isfinite()
    return Share(whole.where(finite, 0.0), finite.float())
