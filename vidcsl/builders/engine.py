"""The engine of a training: how a step is computed, what writes checkpoints, what guards it."""

from collections.abc import Callable
from pathlib import Path

import torch
from fvcore.common.config import CfgNode

from vidcsl.engine.batchnorm import synchronise
from vidcsl.engine.distributed import World
from vidcsl.engine.guard import Guard
from vidcsl.engine.precision import Precision
from vidcsl.engine.step import Stepper
from vidcsl.engine.strategies import Strategy
from vidcsl.engine.writer import CheckpointWriter
from vidcsl.errors import UserError
from vidcsl.objectives import Method

PLAIN = Strategy()


def build_strategy(cfg: CfgNode) -> Strategy:
    """How a method is computed and spread over the processes.

    Raises:
        UserError: CUDA graphs are asked for where memory is used again between them.
    """
    train = cfg.TRAIN
    if train.COMPILE == "reduce-overhead" and (train.CHUNK or train.RECOMPUTE):
        raise UserError(
            "TRAIN.COMPILE reduce-overhead records CUDA graphs, which TRAIN.CHUNK and "
            "TRAIN.RECOMPUTE would run anew before their results are used: set it to default"
        )
    return Strategy(
        parallel=train.PARALLEL,
        recompute=train.RECOMPUTE,
        compiled="" if train.COMPILE == "none" else train.COMPILE,
        channels_last=train.CHANNELS_LAST,
    )


def build_stepper(
    cfg: CfgNode,
    method: Method,
    world: World,
    *,
    optimiser: Callable[[Method], torch.optim.Optimizer],
    strategy: Strategy = PLAIN,
) -> Stepper:
    """The step of a method, which is changed in place: its modules learn to work together.

    Args:
        cfg: the config.
        method: on the world's device.
        world: the processes.
        optimiser: makes one of the method as it then is.
        strategy: how it is computed and spread over the processes.
    """
    synchronise(method, world)
    replica = strategy.prepare(method, world)
    return Stepper(
        method=method,
        optimiser=optimiser(method),
        replica=replica,
        precision=build_precision(cfg, world.device),
        clip_gradient=cfg.TRAIN.CLIP_GRADIENT,
    )


def build_precision(cfg: CfgNode, device: torch.device) -> Precision:
    """What was asked for, or bfloat16 where the hardware has it."""
    name = cfg.PRECISION
    if name == "auto":
        name = "bfloat16" if _has_bfloat16(device) else "float32"
    return Precision(name, device)


def build_writer(cfg: CfgNode, folder: Path, world: World) -> CheckpointWriter:
    """What writes the checkpoints of a training, and deletes old ones."""
    return CheckpointWriter(
        folder,
        world,
        keep=cfg.TRAIN.KEEP,
        keep_every=cfg.TRAIN.KEEP_EVERY,
        background=cfg.TRAIN.CHECKPOINT_BACKGROUND,
    )


def build_guard(cfg: CfgNode) -> Guard:
    """What says when a loss has gone astray."""
    return Guard(spike=cfg.GUARD.SPIKE, rollbacks=cfg.GUARD.ROLLBACKS, skip=cfg.GUARD.SKIP)


def _has_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # Emulated on other CPUs, where it is slower than float32.
    return bool(torch.cpu._is_avx512_bf16_supported())
