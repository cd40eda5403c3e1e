"""Fine-tuning: method, optimiser and schedule."""

import torch
from fvcore.common.config import CfgNode

from vidcsl.data.lists import VideoList
from vidcsl.engine.distributed import World
from vidcsl.engine.schedule import Schedule
from vidcsl.evaluation.finetune import FineTuned, layer_decayed_groups
from vidcsl.models import Encoder
from vidcsl.models.dual_norm import idle_parameters
from vidcsl.seeding import seed_of


def build_finetuned(cfg: CfgNode, encoder: Encoder, videos: VideoList, world: World) -> FineTuned:
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
            world=world,
        )
    return method.to(world.device)


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
