"""How a step is computed: precision, and how the method is spread over processes."""

from collections.abc import Callable

import torch
from fvcore.common.config import CfgNode

from vidcsl.engine.batchnorm import synchronise
from vidcsl.engine.distributed import World
from vidcsl.engine.precision import Precision
from vidcsl.engine.step import Stepper
from vidcsl.engine.strategies import STRATEGIES
from vidcsl.objectives import Method


def build_stepper(
    cfg: CfgNode,
    method: Method,
    world: World,
    *,
    optimiser: Callable[[Method], torch.optim.Optimizer],
) -> Stepper:
    """The step of a method, which is changed in place: its modules learn to work together.

    Args:
        cfg: the config.
        method: on the world's device.
        world: the processes.
        optimiser: makes one of the method as it then is.
    """
    synchronise(method, world)
    replica = STRATEGIES["ddp"](method, world)
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


def _has_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # Emulated on other CPUs, where it is slower than float32.
    return bool(torch.cpu._is_avx512_bf16_supported())
