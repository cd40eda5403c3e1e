"""Optimiser (timm's) and learning-rate schedule (a function of the step, so resuming is exact)."""

import math
from typing import Any

import torch
from timm.optim import create_optimizer_v2  # type: ignore[attr-defined]
from torch import nn


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
