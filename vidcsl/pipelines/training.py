"""From a config to the parts of a training run: optimiser, schedule, strategy, recipes; checks."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch import nn

from vidcsl.config import flat_values
from vidcsl.config import output_dir as output_dir
from vidcsl.data.lists import VideoList
from vidcsl.distributed import DistributedContext
from vidcsl.errors import UserError
from vidcsl.evaluation.finetune import AdversarialLinear, FineTuned, layer_decayed_groups
from vidcsl.methods import Method
from vidcsl.methods.adversarial.classifier import AdversarialClassifier, Trades
from vidcsl.methods.supervised import Supervised
from vidcsl.models import Encoder
from vidcsl.models.batchnorm import idle_parameters
from vidcsl.pipelines.data import build_augmentation, build_corruptions, build_crop, check_lists
from vidcsl.pipelines.method import build_inner_attack, check_method
from vidcsl.pipelines.model import check_batchnorm_name
from vidcsl.pipelines.targets import attack_specs, check_targets
from vidcsl.run_folder import RunFolder
from vidcsl.seeding import seed_of
from vidcsl.training.monitor import TRACKERS, TrackedRun, Tracker, open_trackers
from vidcsl.training.optimisation import FUSED, Precision, Schedule, build_optimiser, scaled_lr
from vidcsl.training.parallel import Strategy, synchronise_batchnorm
from vidcsl.training.train import Learner


def check(cfg: CfgNode) -> None:
    """Find the mistakes that would otherwise show only after hours of training.

    Everything that a config names is built once, except for what needs videos or weights.

    Raises:
        UserError: a method, a tracker, a list, a set of norms, an augmentation, an attack or a
            corruption cannot be built.
    """
    check_method(cfg)
    for name in cfg.LOG.TRACKERS:
        if name not in TRACKERS:
            raise UserError(f"LOG.TRACKERS: {name!r} is not one of {', '.join(TRACKERS)}")
    build_strategy(cfg)
    by, every = cfg.EVALUATE.CHECKPOINT, cfg.EVALUATE.EVERY
    if by != "last" and cfg.TRAIN.ENABLED and not (every and every == cfg.TRAIN.KEEP_EVERY):
        raise UserError(
            f"EVALUATE.CHECKPOINT {by} chooses among checkpoints that were scored and kept: set "
            "EVALUATE.EVERY and TRAIN.KEEP_EVERY to the same number of epochs"
        )
    if every and cfg.TRAIN.PARALLEL == "fsdp":
        raise UserError("EVALUATE.EVERY does not go with TRAIN.PARALLEL fsdp: set it to 0")
    if cfg.TRAIN.FUSED and cfg.TRAIN.OPTIMISER not in FUSED:
        raise UserError(
            f"TRAIN.FUSED: {cfg.TRAIN.OPTIMISER} has no fused form, only {' and '.join(FUSED)}"
        )
    check_batchnorm_name(cfg)
    check_lists(cfg)
    build_augmentation(cfg)
    build_crop(cfg, crops=cfg.EVALUATE.CROPS)
    attack_specs(cfg)
    check_targets(cfg)
    build_corruptions(cfg)
    for name in cfg.ROBUST.PROTOCOLS:
        if name not in ROBUST_PROTOCOLS:
            raise UserError(
                f"ROBUST.PROTOCOLS: unknown {name!r}; choose from {list(ROBUST_PROTOCOLS)}"
            )
        build_inner_attack(cfg, steps=cfg.ROBUST.STEPS)


# ----------------------------------------------------------------------
# Pretraining.


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
        score_every=cfg.EVALUATE.EVERY,
    )


def build_pretraining_optimiser(cfg: CfgNode, method: nn.Module) -> torch.optim.Optimizer:
    """The optimiser that TRAIN names, over a method's parameters."""
    return build_optimiser(
        method,
        name=cfg.TRAIN.OPTIMISER,
        lr=_peak_lr(cfg),
        weight_decay=cfg.TRAIN.WEIGHT_DECAY,
        momentum=cfg.TRAIN.MOMENTUM,
        fused=cfg.TRAIN.FUSED,
    )


def _peak_lr(cfg: CfgNode) -> float:
    return scaled_lr(cfg.TRAIN.LR, batch=cfg.TRAIN.BATCH, reference_batch=cfg.TRAIN.LR_BATCH)


def build_strategy(cfg: CfgNode) -> Strategy:
    """How a method is computed and spread over the processes.

    Raises:
        UserError: CUDA graphs do not go with parts of the encoder that run twice.
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


def build_precision(cfg: CfgNode, device: torch.device) -> Precision:
    """The number format that PRECISION names; auto: bfloat16 if the hardware has it."""
    name = cfg.PRECISION
    if name == "auto":
        if device.type == "cuda":
            supported = torch.cuda.is_bf16_supported(including_emulation=False)
        else:  # other CPUs emulate it, which is slower than float32
            supported = torch.cpu._is_avx512_bf16_supported()
        name = "bfloat16" if supported else "float32"
    return Precision(name, device)


def build_learner(
    cfg: CfgNode,
    method: Method,
    distributed: DistributedContext,
    *,
    optimiser: Callable[[Any], torch.optim.Optimizer],
    strategy: Strategy | None = None,
) -> Learner:
    """A method ready to be trained. The method itself is changed: see `Strategy.prepare`.

    Args:
        cfg: the config.
        method: on the device of `distributed`.
        distributed: the processes.
        optimiser: builds the optimiser, after the strategy has replaced parameters.
        strategy: how the method is computed and spread over the processes; by default DDP.
    """
    synchronise_batchnorm(method, distributed)
    replica = (strategy or Strategy()).prepare(method, distributed)
    return Learner(
        method=method,
        optimiser=optimiser(method),
        replica=replica,
        precision=build_precision(cfg, distributed.device),
        clip_gradient=cfg.TRAIN.CLIP_GRADIENT,
    )


def build_trackers(cfg: CfgNode, folder: RunFolder) -> list[Tracker]:
    """The trackers of LOG.TRACKERS; for the main process."""
    name = f"{cfg.NAME}/seed{cfg.SEED}"
    run = TrackedRun(name=name, project=cfg.LOG.PROJECT, folder=folder, config=flat_values(cfg))
    return open_trackers(cfg.LOG.TRACKERS, run)


# ----------------------------------------------------------------------
# Training with labels, to evaluate an encoder: fine-tuning and the adversarial protocols.


@dataclass(frozen=True)
class FinetuneRecipe:
    """How a copy of the encoder is trained with labels.

    Args:
        name: of the protocol, and of its folder.
        settings: what the result depends on, beside weights, norms and seed.
        epochs, batch: passes over the training list, and videos per step over all processes.
        lr, warmup_epochs: peak of the cosine schedule, and its linear warm-up.
        build: `(encoder, videos, distributed) -> method`; the encoder is changed.
        optimiser: of that method.
    """

    name: str
    settings: Mapping[str, Any]
    epochs: int
    batch: int
    lr: float
    warmup_epochs: float
    build: Callable[[Encoder, VideoList, DistributedContext], Supervised]
    optimiser: Callable[[Supervised], torch.optim.Optimizer]


def finetune_recipe(cfg: CfgNode) -> FinetuneRecipe:
    """Fine-tuning of all weights, see `FineTuned`: AdamW whose rate shrinks from head to stem."""
    options = cfg.FINETUNE

    def build(encoder: Encoder, videos: VideoList, distributed: DistributedContext) -> FineTuned:
        _train_all(encoder)
        with torch.random.fork_rng():
            torch.manual_seed(seed_of(cfg.SEED, "finetune"))
            method = FineTuned(
                encoder,
                feature_dim=encoder.feature_dim,
                classes=len(videos.classes),
                label_smoothing=options.LABEL_SMOOTHING,
                dropout=options.DROPOUT,
                mixup=options.MIXUP,
                seed=cfg.SEED,
                distributed=distributed,
            )
        return method.to(distributed.device)

    def optimiser(method: Supervised) -> torch.optim.Optimizer:
        decay = {"weight_decay": options.WEIGHT_DECAY, "layer_decay": options.LAYER_DECAY}
        return torch.optim.AdamW(layer_decayed_groups(method, **decay), lr=options.LR)

    return FinetuneRecipe(
        "finetune",
        settings={"finetune": dict(options)},
        epochs=options.EPOCHS,
        batch=options.BATCH,
        lr=options.LR,
        warmup_epochs=0.1 * options.EPOCHS,
        build=build,
        optimiser=optimiser,
    )


@dataclass(frozen=True)
class RobustProtocol:
    """An adversarial protocol: its method, the published rate, and the batch that this is for."""

    method: type[AdversarialClassifier]
    lr: float
    lr_batch: int


ROBUST_PROTOCOLS = {
    "alf": RobustProtocol(AdversarialLinear, lr=0.01, lr_batch=512),
    "aff": RobustProtocol(Trades, lr=0.1, lr_batch=128),
}
MOMENTUM, WEIGHT_DECAY = 0.9, 2e-4  # as published


def robust_recipe(cfg: CfgNode, name: str) -> FinetuneRecipe:
    """A protocol of ROBUST_PROTOCOLS: plain SGD and half a cosine, as published."""
    protocol = ROBUST_PROTOCOLS[name]
    lr = cfg.ROBUST.LR_FACTOR * scaled_lr(
        protocol.lr, batch=cfg.ROBUST.BATCH, reference_batch=protocol.lr_batch
    )

    def build(encoder: Encoder, videos: VideoList, distributed: DistributedContext) -> Supervised:
        beta: dict[str, Any] = {"beta": cfg.ADVERSARIAL.BETA} if name == "aff" else {}
        with torch.random.fork_rng():
            torch.manual_seed(seed_of(cfg.SEED, name))
            method = protocol.method(
                _train_all(encoder),
                feature_dim=encoder.feature_dim,
                classes=len(videos.classes),
                attack=build_inner_attack(cfg, steps=cfg.ROBUST.STEPS),
                seed=cfg.SEED,
                distributed=distributed,
                **beta,
            )
        return method.to(distributed.device)

    def optimiser(method: Supervised) -> torch.optim.Optimizer:
        return build_optimiser(
            method, name="sgd", lr=lr, weight_decay=WEIGHT_DECAY, momentum=MOMENTUM
        )

    settings = {key: value for key, value in cfg.ROBUST.items() if key != "PROTOCOLS"}
    return FinetuneRecipe(
        name,
        settings={"robust": settings, "adversarial": dict(cfg.ADVERSARIAL)},
        epochs=cfg.ROBUST.EPOCHS,
        batch=cfg.ROBUST.BATCH,
        lr=lr,
        warmup_epochs=0.0,
        build=build,
        optimiser=optimiser,
    )


def _train_all(encoder: Encoder) -> Encoder:
    """The encoder; all its parameters learn, except for those of BatchNorms that are not used."""
    encoder.requires_grad_(True)
    for parameter in idle_parameters(encoder):  # DDP waits for the gradient of every other
        parameter.requires_grad_(False)
    return encoder
