"""The adversarial protocols: method, optimiser and schedule."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from fvcore.common.config import CfgNode

from vidcsl.builders.adversarial import build_inner_attack
from vidcsl.builders.finetune import trainable
from vidcsl.data.lists import VideoList
from vidcsl.engine.distributed import World
from vidcsl.engine.optim import build_optimiser, scaled_lr
from vidcsl.engine.schedule import Schedule
from vidcsl.errors import UserError
from vidcsl.evaluation.adversarial import AdversarialLinear
from vidcsl.models import Encoder
from vidcsl.objectives.adversarial.classifier import AdversarialClassifier
from vidcsl.objectives.adversarial.trades import Trades
from vidcsl.seeding import seed_of

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
    cfg: CfgNode, name: str, encoder: Encoder, videos: VideoList, world: World
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
            world=world,
            **beta,
        )
    return method.to(world.device)


def build_robust_optimiser(
    cfg: CfgNode, name: str, method: AdversarialClassifier
) -> torch.optim.Optimizer:
    """Plain SGD, as published."""
    return build_optimiser(
        method,
        name="sgd",
        lr=_peak_lr(cfg, name),
        weight_decay=WEIGHT_DECAY,
        momentum=MOMENTUM,
    )


def build_robust_schedule(cfg: CfgNode, name: str, *, steps_per_epoch: int) -> Schedule:
    """Half a cosine."""
    return Schedule(
        epochs=cfg.ROBUST.EPOCHS,
        steps_per_epoch=steps_per_epoch,
        peak_lr=_peak_lr(cfg, name),
        log_every=cfg.TRAIN.LOG_EVERY,
    )


def _peak_lr(cfg: CfgNode, name: str) -> float:
    recipe = _RECIPES[name]
    lr = scaled_lr(recipe.lr, batch=cfg.ROBUST.BATCH, reference_batch=recipe.lr_batch)
    return cfg.ROBUST.LR_FACTOR * lr
