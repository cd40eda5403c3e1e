"""Optimiser, schedule, precision, and the guard against losses that diverge."""

import math
from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from timm.optim import create_optimizer_v2  # type: ignore[attr-defined]
from torch import nn

from vidcsl.errors import Diverged

# ----------------------------------------------------------------------
# Optimiser and learning rate.

# Ours: timm's name. timm's "sgd" is Nesterov's; its "momentum" is the published recipes' plain SGD.
OPTIMISERS = {"sgd": "momentum", "adamw": "adamw", "lars": "lars"}
FUSED = ("sgd", "adamw")  # torch's own; timm's lars runs one kernel per parameter


def build_optimiser(
    module: nn.Module,
    *,
    name: str,
    lr: float,
    weight_decay: float,
    momentum: float,
    fused: bool = False,
) -> torch.optim.Optimizer:
    """A timm optimiser that decays weights but neither biases nor norms.

    Args:
        module: whose parameters are trained.
        name: in OPTIMISERS.
        lr: peak learning rate.
        weight_decay, momentum: momentum is used by sgd and lars.
        fused: one kernel for all parameters; for the optimisers in FUSED.
    """
    options: Any = {"fused": True} if fused else {}  # timm's own optimisers have no such argument
    optimiser: torch.optim.Optimizer = create_optimizer_v2(
        module,
        opt=OPTIMISERS[name],
        lr=lr,
        weight_decay=weight_decay,
        momentum=momentum,
        filter_bias_and_bn=True,
        **options,
    )
    return optimiser


def scaled_lr(lr: float, *, batch: int, reference_batch: int) -> float:
    """Linear scaling rule (Goyal et al., 2017): `lr` fits `reference_batch`; 0: not scaled."""
    return lr * batch / reference_batch if reference_batch else lr


def cosine_lr(step: int, *, peak: float, warmup_steps: int, total_steps: int) -> float:
    """Learning rate of `step` (from 0): linear warm-up to `peak`, then half a cosine to 0."""
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    done = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return peak * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def set_lr(optimiser: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every parameter group, times its `lr_scale` if it has one."""
    for group in optimiser.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)


@dataclass(frozen=True)
class Schedule:
    """Length and learning rate of a training run, and when it logs and saves.

    Everything is a function of the position, so that a resumed run needs no state of a scheduler.

    Args:
        epochs, steps_per_epoch: length of the training run.
        peak_lr: of the cosine schedule.
        warmup_epochs: of linear warm-up.
        log_every: steps between lines of the log.
        checkpoint_every: epochs between checkpoints; the last epoch always has one.
        checkpoint_steps: steps between further checkpoints within an epoch; 0: none.
        score_every: epochs between scores of the encoder, the last one included; 0: none.
    """

    epochs: int
    steps_per_epoch: int
    peak_lr: float
    warmup_epochs: float = 0.0
    log_every: int = 10
    checkpoint_every: int = 1
    checkpoint_steps: int = 0
    score_every: int = 0

    @property
    def total_steps(self) -> int:
        """Steps of the whole training run."""
        return self.epochs * self.steps_per_epoch

    def lr(self, step: int) -> float:
        """Learning rate of global step `step`."""
        warmup = round(self.warmup_epochs * self.steps_per_epoch)
        return cosine_lr(step, peak=self.peak_lr, warmup_steps=warmup, total_steps=self.total_steps)

    def logs(self, step: int) -> bool:
        """Whether a line of the log is due after `step` steps of an epoch."""
        return step == self.steps_per_epoch or step % self.log_every == 0

    def saves(self, *, epoch: int, step: int) -> bool:
        """Whether a checkpoint is due at this position; `step` 0 is the end of the epoch before."""
        if step:
            every = self.checkpoint_steps
            return bool(every) and step % every == 0 and step < self.steps_per_epoch
        return epoch == self.epochs or epoch % self.checkpoint_every == 0

    def scores(self, *, epoch: int) -> bool:
        """Whether the encoder is scored after this many epochs."""
        every = self.score_every
        return bool(every) and (epoch == self.epochs or epoch % every == 0)


# ----------------------------------------------------------------------
# Precision.

DTYPES: dict[str, torch.dtype | None] = {
    "float32": None,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


class Precision:
    """Autocast of the forward pass, and the loss scale that float16's narrow range needs.

    Weights, momentum weights and optimiser stay in float32; so do losses and similarities, see
    `vidcsl.methods.losses.at_least_float32`.

    Args:
        name: in DTYPES.
        device: that computes; by default the CPU.
    """

    def __init__(self, name: str = "float32", device: torch.device | None = None) -> None:
        self._device = device.type if device else "cpu"
        self._dtype = DTYPES[name]
        # Disabled, a scaler passes losses, gradients and steps through unchanged.
        self.scaler = torch.amp.GradScaler(self._device, enabled=name == "float16")

    def autocast(self) -> torch.autocast:
        """The context of the forward pass."""
        return torch.autocast(self._device, self._dtype, enabled=self._dtype is not None)

    def state_dict(self) -> dict[str, Any]:
        """The loss scale and its history as plain numbers; empty without float16."""
        return self.scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`; a state of another number format is ignored."""
        if self.scaler.is_enabled() and state:
            self.scaler.load_state_dict(state)


# ----------------------------------------------------------------------
# Divergence.

WINDOW, ENOUGH = 100, 20  # losses that a spike is compared with, and the fewest that suffice
LEAST_DEVIATION = 0.01  # of the mean: where a loss hardly varies, a small step is no spike


class Guard:
    """Detects a loss that has diverged, and remembers which steps to leave out after a roll-back.

    Training is deterministic: repeated from the checkpoint as it was, it would diverge again. So
    the batches around the bad step are left out, as Chowdhery et al., "PaLM", JMLR 2023, did by
    hand.

    Args:
        spike: deviations above the mean of the last WINDOW losses that count as diverged; 0: only
            a loss that is not finite does.
        rollbacks: how often in all the run may be rolled back.
        skip: steps that are left out after each, the last of them the bad one.
    """

    def __init__(self, *, spike: float = 0.0, rollbacks: int = 0, skip: int = 1) -> None:
        self.spike, self.rollbacks, self.skip = spike, rollbacks, skip
        self.done = 0
        self.left_out: set[int] = set()
        self._losses: deque[float] = deque(maxlen=WINDOW)

    def check(self, loss: float) -> None:
        """Check the loss of a step, averaged over all processes.

        Raises:
            Diverged: it is not finite, or a spike.
        """
        if not math.isfinite(loss):
            raise Diverged("the loss is not finite")
        if self.spike and len(self._losses) >= ENOUGH:
            mean, deviation = float(np.mean(self._losses)), float(np.std(self._losses))
            limit = mean + self.spike * max(deviation, LEAST_DEVIATION * abs(mean))
            if loss > limit:
                raise Diverged(f"the loss jumped to {loss:.4g}, over {limit:.4g}")
        # A spike is not appended: it must not raise the limit for the next one.
        self._losses.append(loss)

    @property
    def may_roll_back(self) -> bool:
        """Whether a roll-back is left."""
        return self.done < self.rollbacks

    def roll_back(self, *, bad_step: int) -> list[int]:
        """Count a roll-back and leave out the steps that led to it; all steps left out so far."""
        self.done += 1
        self.left_out |= set(range(max(0, bad_step - self.skip + 1), bad_step + 1))
        return sorted(self.left_out)

    def state_dict(self) -> dict[str, Any]:
        """Everything that decides later checks, as plain values."""
        return {
            "losses": list(self._losses),
            "left_out": sorted(self.left_out),
            "done": self.done,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`; steps that were left out since stay left out."""
        # A roll-back loads the state from before it, which knows nothing of the steps it left out.
        self._losses = deque(state.get("losses", []), maxlen=WINDOW)
        self.left_out |= set(state.get("left_out", []))
        self.done = max(self.done, state.get("done", 0))
