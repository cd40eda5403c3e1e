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
# Optimiser (timm's) and learning-rate schedule (a function of the step, so resuming is exact).


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
        name: sgd (plain momentum), adamw, lars or lamb.
        lr: peak learning rate.
        weight_decay, momentum: momentum is used by sgd and lars.
        fused: one kernel for all parameters, of sgd and adamw.
    """
    options: Any = {"fused": True} if fused else {}  # timm's own optimisers know no such word
    # timm's "sgd" is Nesterov's; its "momentum" is the published recipes' plain SGD.
    optimiser: torch.optim.Optimizer = create_optimizer_v2(
        module,
        opt={"sgd": "momentum"}.get(name, name),
        lr=lr,
        weight_decay=weight_decay,
        momentum=momentum,
        filter_bias_and_bn=True,
        **options,
    )
    return optimiser


def scaled_lr(lr: float, *, batch: int, reference_batch: int) -> float:
    """Linear scaling rule (Goyal et al., 2017): `lr` fits `reference_batch`; 0: as it is."""
    return lr * batch / reference_batch if reference_batch else lr


def cosine_lr(step: int, *, peak: float, warmup_steps: int, total_steps: int) -> float:
    """Learning rate of `step` (from 0): linear warm-up to `peak`, then half a cosine to 0."""
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    done = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return peak * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def set_lr(optimiser: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every parameter group, times its `lr_scale` where it has one."""
    for group in optimiser.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)


# ----------------------------------------------------------------------
# How long, how fast and how often a training goes.


@dataclass(frozen=True)
class Schedule:
    """Length, learning rate, logging and checkpoints of a training.

    Args:
        epochs, steps_per_epoch: length of the training.
        peak_lr: of the cosine schedule.
        warmup_epochs: of linear warm-up.
        log_every: steps between lines of the log.
        checkpoint_every: epochs between checkpoints; the last epoch always has one.
        checkpoint_steps: steps between further checkpoints within an epoch; 0: none.
    """

    epochs: int
    steps_per_epoch: int
    peak_lr: float
    warmup_epochs: float = 0.0
    log_every: int = 10
    checkpoint_every: int = 1
    checkpoint_steps: int = 0

    @property
    def total_steps(self) -> int:
        """Steps of the whole training."""
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


# ----------------------------------------------------------------------
# What a training step computes in.

DTYPES: dict[str, torch.dtype | None] = {
    "float32": None,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


class Precision:
    """Autocast of the forward pass, and the loss scale that float16's narrow range needs.

    Weights, their averages and the optimiser stay in float32; so do losses and similarities, see
    `objectives`.

    Args:
        name: in DTYPES.
        device: what is computed on.
    """

    def __init__(self, name: str = "float32", device: torch.device | None = None) -> None:
        self._device = device.type if device else "cpu"
        self._dtype = DTYPES[name]
        # Without float16 it passes everything through.
        self.scaler = torch.amp.GradScaler(self._device, enabled=name == "float16")

    def autocast(self) -> torch.autocast:
        """The block in which the forward pass runs."""
        return torch.autocast(self._device, self._dtype, enabled=self._dtype is not None)

    def state(self) -> dict[str, Any]:
        """The loss scale and its history, as plain numbers; empty without float16."""
        return self.scaler.state_dict()

    def load(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        if self.scaler.is_enabled() and state:
            self.scaler.load_state_dict(state)


# ----------------------------------------------------------------------
# A training that goes astray is set back to its last checkpoint, and goes round what led it there.
#
# The training is deterministic: repeated as it was, it would go astray again. So the batches around
# the bad step are left out, as Chowdhery et al., "PaLM", JMLR 2023, did by hand.

WINDOW, ENOUGH = 100, 20  # losses that a spike is held against, and the least that say anything
LEAST_DEVIATION = 0.01  # of the mean: where a loss hardly moves, a small step is no spike


class Guard:
    """Tells a loss that went astray from those before it; remembers which steps to leave out.

    Args:
        spike: deviations above the mean of the last WINDOW losses that are a spike; 0: only a loss
            that is not finite goes astray.
        rollbacks: how often in all the training may be set back.
        skip: steps that are left out then, the last of them the bad one.
    """

    def __init__(self, *, spike: float = 0.0, rollbacks: int = 0, skip: int = 1) -> None:
        self.spike, self.rollbacks, self.skip = spike, rollbacks, skip
        self.done = 0
        self.left_out: set[int] = set()
        self._losses: deque[float] = deque(maxlen=WINDOW)

    def check(self, loss: float) -> None:
        """Take note of the loss of a step, over all processes.

        Raises:
            Diverged: it went astray.
        """
        if not math.isfinite(loss):
            raise Diverged("the loss is not finite")
        if self.spike and len(self._losses) >= ENOUGH:
            mean, deviation = float(np.mean(self._losses)), float(np.std(self._losses))
            limit = mean + self.spike * max(deviation, LEAST_DEVIATION * abs(mean))
            if loss > limit:
                raise Diverged(f"the loss leapt to {loss:.4g}, over {limit:.4g}")
        self._losses.append(loss)

    @property
    def may_roll_back(self) -> bool:
        """Whether the training may be set back once more."""
        return self.done < self.rollbacks

    def roll_back(self, *, bad_step: int) -> list[int]:
        """Count one, and leave out the steps that led to it; all that are left out by now."""
        self.done += 1
        self.left_out |= set(range(max(0, bad_step - self.skip + 1), bad_step + 1))
        return sorted(self.left_out)

    def state(self) -> dict[str, Any]:
        """All that decides what it will say, as plain values."""
        return {
            "losses": list(self._losses),
            "left_out": sorted(self.left_out),
            "done": self.done,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from `state`; what was left out since stays left out."""
        self._losses = deque(state.get("losses", []), maxlen=WINDOW)
        self.left_out |= set(state.get("left_out", []))
        self.done = max(self.done, state.get("done", 0))
