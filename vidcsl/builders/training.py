"""Optimiser and schedule."""

import torch
from fvcore.common.config import CfgNode
from torch import nn

from vidcsl.engine.optim import build_optimiser, scaled_lr
from vidcsl.engine.schedule import Schedule
from vidcsl.errors import UserError

_FUSED = ("sgd", "adamw")  # torch's own; timm's run a kernel a parameter


def check_optimiser(cfg: CfgNode) -> None:
    """Raise a UserError where the optimiser has no fused form and one is asked for."""
    if cfg.TRAIN.FUSED and cfg.TRAIN.OPTIMISER not in _FUSED:
        raise UserError(
            f"TRAIN.FUSED: {cfg.TRAIN.OPTIMISER} has no fused form, only {' and '.join(_FUSED)}"
        )


def build_optimiser_of(cfg: CfgNode, method: nn.Module) -> torch.optim.Optimizer:
    """The optimiser of a method's parameters."""
    return build_optimiser(
        method,
        name=cfg.TRAIN.OPTIMISER,
        lr=_peak_lr(cfg),
        weight_decay=cfg.TRAIN.WEIGHT_DECAY,
        momentum=cfg.TRAIN.MOMENTUM,
        fused=cfg.TRAIN.FUSED,
    )


def build_schedule(cfg: CfgNode, *, steps_per_epoch: int) -> Schedule:
    """Length, learning rate, logging and checkpoints."""
    return Schedule(
        epochs=cfg.TRAIN.EPOCHS,
        steps_per_epoch=steps_per_epoch,
        peak_lr=_peak_lr(cfg),
        warmup_epochs=min(cfg.TRAIN.WARMUP_EPOCHS, cfg.TRAIN.EPOCHS),
        log_every=cfg.TRAIN.LOG_EVERY,
        checkpoint_every=cfg.TRAIN.CHECKPOINT_EVERY,
        checkpoint_steps=cfg.TRAIN.CHECKPOINT_STEPS,
    )


def _peak_lr(cfg: CfgNode) -> float:
    return scaled_lr(cfg.TRAIN.LR, batch=cfg.TRAIN.BATCH, reference_batch=cfg.TRAIN.LR_BATCH)
