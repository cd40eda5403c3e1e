"""From a config to optimiser, schedule, strategy, trackers; and the check of a whole config."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch import nn

from vidcsl.config import flat_values
from vidcsl.data.lists import VideoList
from vidcsl.distributed import DistributedContext
from vidcsl.errors import UserError
from vidcsl.evaluation.finetune import AdversarialLinear, FineTuned, layer_decayed_groups
from vidcsl.methods import Method
from vidcsl.methods.adversarial.classifier import AdversarialClassifier, Trades
from vidcsl.models import Encoder
from vidcsl.models.norm_sets import idle_parameters
from vidcsl.pipelines.data import build_augmentation, build_corruptions, build_crop, check_lists
from vidcsl.pipelines.method import build_inner_attack, check_method
from vidcsl.pipelines.model import check_norms
from vidcsl.pipelines.targets import build_attack_runs, check_targets
from vidcsl.run_folder import RunFolder
from vidcsl.seeding import seed_of
from vidcsl.training.checkpoint import CheckpointWriter
from vidcsl.training.monitor import TRACKERS, Run, Tracker, Watchdog, open_trackers
from vidcsl.training.optimisation import Guard, Precision, Schedule, build_optimiser, scaled_lr
from vidcsl.training.parallel import Strategy, synchronise
from vidcsl.training.train import Stepper

# ----------------------------------------------------------------------
# Optimiser and schedule.

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


# ----------------------------------------------------------------------
# The engine of a training: how a step is computed, what writes checkpoints, what guards it.

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
    distributed: DistributedContext,
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
    synchronise(method, distributed)
    replica = strategy.prepare(method, distributed)
    return Stepper(
        method=method,
        optimiser=optimiser(method),
        replica=replica,
        precision=build_precision(cfg, distributed.device),
        clip_gradient=cfg.TRAIN.CLIP_GRADIENT,
    )


def build_precision(cfg: CfgNode, device: torch.device) -> Precision:
    """What was asked for, or bfloat16 where the hardware has it."""
    name = cfg.PRECISION
    if name == "auto":
        name = "bfloat16" if _has_bfloat16(device) else "float32"
    return Precision(name, device)


def build_writer(cfg: CfgNode, folder: Path, distributed: DistributedContext) -> CheckpointWriter:
    """What writes the checkpoints of a training, and deletes old ones."""
    return CheckpointWriter(
        folder,
        distributed,
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


# ----------------------------------------------------------------------
# Trackers and the watchdog.


def build_trackers(cfg: CfgNode, folder: RunFolder) -> list[Tracker]:
    """The trackers of LOG.TRACKERS, of which the main process has some and the others none."""
    name = f"{cfg.NAME}/seed{cfg.SEED}"
    run = Run(name=name, project=cfg.LOG.PROJECT, folder=folder, config=flat_values(cfg))
    return open_trackers(cfg.LOG.TRACKERS, run)


def check_trackers(cfg: CfgNode) -> None:
    """Raise a UserError where LOG.TRACKERS names one that there is not."""
    for name in cfg.LOG.TRACKERS:
        if name not in TRACKERS:
            raise UserError(f"LOG.TRACKERS: {name!r} is not one of {', '.join(TRACKERS)}")


def build_watchdog(
    cfg: CfgNode, stacks: Path | None, *, workers: Callable[[], Sequence[int]]
) -> Watchdog:
    """As LOG.HANG_SECONDS and LOG.HANG_ENDS say; without `stacks`, the file to write, none."""
    if stacks is None:
        return Watchdog()
    ends_run = cfg.LOG.HANG_ENDS
    return Watchdog(cfg.LOG.HANG_SECONDS, path=stacks, workers=workers, ends_run=ends_run)


# ----------------------------------------------------------------------
# Fine-tuning: method, optimiser and schedule.


def build_finetuned(
    cfg: CfgNode, encoder: Encoder, videos: VideoList, distributed: DistributedContext
) -> FineTuned:
    """The encoder under a fresh head, on the world's device; trained whole, see `FineTuned`."""
    trainable(encoder)
    with torch.random.fork_rng():
        torch.manual_seed(seed_of(cfg.SEED, "finetune"))
        method = FineTuned(
            encoder,
            feature_dim=encoder.feature_dim,
            classes=len(videos.classes),
            label_smoothing=cfg.FINETUNE.LABEL_SMOOTHING,
            dropout=cfg.FINETUNE.DROPOUT,
            mixup=cfg.FINETUNE.MIXUP,
            seed=cfg.SEED,
            distributed=distributed,
        )
    return method.to(distributed.device)


def trainable(encoder: Encoder) -> Encoder:
    """The encoder, all of whose parameters learn but those of BatchNorms that are not in use."""
    encoder.requires_grad_(True)
    for parameter in idle_parameters(encoder):
        parameter.requires_grad_(False)
    return encoder


def build_finetune_optimiser(cfg: CfgNode, method: FineTuned) -> torch.optim.Optimizer:
    """AdamW whose rates shrink from the head to the stem."""
    options = cfg.FINETUNE
    groups = layer_decayed_groups(
        method, weight_decay=options.WEIGHT_DECAY, layer_decay=options.LAYER_DECAY
    )
    return torch.optim.AdamW(groups, lr=options.LR)


def build_finetune_schedule(cfg: CfgNode, *, steps_per_epoch: int) -> Schedule:
    """Warm-up of a tenth, then a cosine."""
    options = cfg.FINETUNE
    return Schedule(
        epochs=options.EPOCHS,
        steps_per_epoch=steps_per_epoch,
        peak_lr=options.LR,
        warmup_epochs=0.1 * options.EPOCHS,
        log_every=cfg.TRAIN.LOG_EVERY,
    )


# ----------------------------------------------------------------------
# The adversarial protocols: method, optimiser and schedule.

MOMENTUM, WEIGHT_DECAY = 0.9, 2e-4


@dataclass(frozen=True)
class Recipe:
    """How a protocol trains: the published rate, and the batch that it is meant for."""

    build: Callable[..., AdversarialClassifier]
    lr: float
    lr_batch: int


_RECIPES = {
    "alf": Recipe(AdversarialLinear, lr=0.01, lr_batch=512),
    "aff": Recipe(Trades, lr=0.1, lr_batch=128),
}


def check_robust(cfg: CfgNode) -> None:
    """Raise UserError where a protocol is not known, or its attack cannot be built."""
    for name in cfg.ROBUST.PROTOCOLS:
        if name not in _RECIPES:
            raise UserError(f"ROBUST.PROTOCOLS: unknown {name!r}; choose from {list(_RECIPES)}")
        build_inner_attack(cfg, steps=cfg.ROBUST.STEPS)


def build_robust(
    cfg: CfgNode, name: str, encoder: Encoder, videos: VideoList, distributed: DistributedContext
) -> AdversarialClassifier:
    """A protocol's method on the encoder, which it changes, under a fresh head."""
    beta: dict[str, Any] = {"beta": cfg.ADVERSARIAL.BETA} if name == "aff" else {}
    with torch.random.fork_rng():
        torch.manual_seed(seed_of(cfg.SEED, name))
        method = _RECIPES[name].build(
            trainable(encoder),
            feature_dim=encoder.feature_dim,
            classes=len(videos.classes),
            attack=build_inner_attack(cfg, steps=cfg.ROBUST.STEPS),
            seed=cfg.SEED,
            distributed=distributed,
            **beta,
        )
    return method.to(distributed.device)


def build_robust_optimiser(
    cfg: CfgNode, name: str, method: AdversarialClassifier
) -> torch.optim.Optimizer:
    """Plain SGD, as published."""
    return build_optimiser(
        method,
        name="sgd",
        lr=_robust_peak_lr(cfg, name),
        weight_decay=WEIGHT_DECAY,
        momentum=MOMENTUM,
    )


def build_robust_schedule(cfg: CfgNode, name: str, *, steps_per_epoch: int) -> Schedule:
    """Half a cosine."""
    return Schedule(
        epochs=cfg.ROBUST.EPOCHS,
        steps_per_epoch=steps_per_epoch,
        peak_lr=_robust_peak_lr(cfg, name),
        log_every=cfg.TRAIN.LOG_EVERY,
    )


def _robust_peak_lr(cfg: CfgNode, name: str) -> float:
    recipe = _RECIPES[name]
    lr = scaled_lr(recipe.lr, batch=cfg.ROBUST.BATCH, reference_batch=recipe.lr_batch)
    return cfg.ROBUST.LR_FACTOR * lr


# ----------------------------------------------------------------------
# The run itself: where it is written, what it computes in, and its mistakes found early.


def output_dir(cfg: CfgNode) -> Path:
    """Where the run is written."""
    return Path(cfg.OUTPUT_DIR or f"runs/{cfg.NAME}/seed{cfg.SEED}")


def check(cfg: CfgNode) -> None:
    """Find the mistakes that would otherwise show only after hours of training.

    Raises:
        UserError: a method, a tracker, a list, a set of norms, an augmentation, an attack or a
            corruption cannot be built.
    """
    check_method(cfg)
    check_trackers(cfg)
    build_strategy(cfg)
    check_optimiser(cfg)
    check_norms(cfg)
    check_lists(cfg)
    build_augmentation(cfg)
    build_crop(cfg, crops=cfg.EVALUATE.CROPS)
    build_attack_runs(cfg)
    check_targets(cfg)
    build_corruptions(cfg)
    check_robust(cfg)
