"""Encoder, heads and objective."""

from collections.abc import Callable
from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch import nn

from vidcsl.builders.adversarial import (
    build_adversarial_classifier,
    build_deacl,
    check_adversarial,
    contrastive_options,
)
from vidcsl.builders.false_negatives import (
    build_detector,
    build_treatment,
    earlier_rounds,
    require_labels,
)
from vidcsl.builders.losses import build_loss
from vidcsl.builders.models import build_encoder
from vidcsl.data.lists import VideoList
from vidcsl.engine.distributed import World
from vidcsl.errors import UserError
from vidcsl.models import Encoder
from vidcsl.models.dual_norm import has_norms, idle_parameters, with_norm_sets
from vidcsl.models.heads import Norms, projector
from vidcsl.objectives import CONTRASTIVE, METHODS, Method
from vidcsl.objectives.adversarial import ADVERSARIAL_CONTRASTIVE, ADVERSARIAL_SUPERVISED
from vidcsl.objectives.byol import BYOL
from vidcsl.objectives.ema import MomentumEncoder
from vidcsl.objectives.queue import KeyQueue, check_queue
from vidcsl.objectives.supervised import Supervised
from vidcsl.objectives.swav import SwAV
from vidcsl.seeding import seed_of


def build_method(cfg: CfgNode, videos: VideoList, world: World) -> Method:
    """Encoder, heads and loss, on the world's device.

    Raises:
        UserError: the method needs labels or views that the data do not give.
    """
    check_method(cfg)
    encoder = build_encoder(cfg)
    encoder.chunk = cfg.TRAIN.CHUNK * cfg.DATA.CLIPS
    with torch.random.fork_rng():
        torch.manual_seed(seed_of(cfg.SEED, "heads"))
        method = _BUILDERS[cfg.METHOD.NAME](cfg, encoder, videos, world)
    if len(METHODS[cfg.METHOD.NAME].norm_sets) == 1:
        for parameter in idle_parameters(encoder):  # DDP waits for the gradient of every other
            parameter.requires_grad_(False)
    return method.to(world.device)


def check_method(cfg: CfgNode) -> None:
    """Find what does not fit together in the method's options.

    Raises:
        UserError: too few clips, a queue too short, an attack or a teacher amiss, false negatives
            of a method without any, or rounds of a detector that remembers nothing.
    """
    name, detector = cfg.METHOD.NAME, cfg.FALSE_NEGATIVES.DETECTOR
    if name not in _SINGLE and cfg.DATA.CLIPS < 2:
        raise UserError(f"METHOD.NAME {name} needs DATA.CLIPS of at least 2")
    if name not in CONTRASTIVE and (detector != "none" or cfg.FALSE_NEGATIVES.VOTERS):
        raise UserError(
            f"METHOD.NAME {name} has no negatives that may be false: set FALSE_NEGATIVES.DETECTOR "
            f"to none and .VOTERS to 0, or METHOD.NAME to one of {', '.join(CONTRASTIVE)}"
        )
    _check_rounds(cfg)
    check_adversarial(cfg)
    if name == "moco_v2":
        check_queue(cfg.METHOD.QUEUE, keys=cfg.TRAIN.BATCH * cfg.DATA.CLIPS)


def _check_rounds(cfg: CfgNode) -> None:
    options = cfg.FALSE_NEGATIVES
    if (options.ROUNDS > 1 or options.TUTOR) and options.DETECTOR != "memory":
        raise UserError(
            "FALSE_NEGATIVES.ROUNDS above 1 and .TUTOR need FALSE_NEGATIVES.DETECTOR memory: what "
            f"one training remembers judges the next; it is {options.DETECTOR}"
        )
    if options.ROUNDS_METHOD and options.ROUNDS == 1:
        raise UserError("FALSE_NEGATIVES.ROUNDS_METHOD needs FALSE_NEGATIVES.ROUNDS above 1")
    if options.ROUNDS_METHOD:
        check_method(earlier_rounds(cfg))


# BatchNorm in the heads, where it is not everywhere, as published: Chen et al. (MoCo v2), Grill et
# al. (BYOL) and Caron et al. (SwAV), all 2020.
_NORMS = {
    "moco_v2": Norms(hidden=False, last=False),
    "byol": Norms(last=False),
    "swav": Norms(last=False),
}


def _build_projector(cfg: CfgNode, encoder: Encoder) -> nn.Module:
    head = projector(
        in_dim=encoder.feature_dim,
        hidden_dim=cfg.METHOD.PROJECTOR_HIDDEN,
        out_dim=cfg.METHOD.PROJECTOR_DIM,
        layers=cfg.METHOD.PROJECTOR_LAYERS,
        norms=_NORMS.get(cfg.METHOD.NAME, Norms()),
    )
    sets = METHODS[cfg.METHOD.NAME].projector_sets
    return with_norm_sets(head, sets) if len(sets) > 1 and has_norms(head) else head


def _build_predictor(cfg: CfgNode, dim: int) -> nn.Module:
    return projector(
        in_dim=dim,
        hidden_dim=cfg.METHOD.PREDICTOR_HIDDEN,
        out_dim=dim,
        layers=cfg.METHOD.PREDICTOR_LAYERS,
        norms=_NORMS.get(cfg.METHOD.NAME, Norms()),
    )


def _build_teacher(cfg: CfgNode, encoder: Encoder, head: nn.Module) -> MomentumEncoder:
    return MomentumEncoder(
        encoder, head, momentum=cfg.METHOD.MOMENTUM, schedule=cfg.METHOD.MOMENTUM_SCHEDULE
    )


def _embedding_dim(cfg: CfgNode, encoder: Encoder) -> int:
    return cfg.METHOD.PROJECTOR_DIM if cfg.METHOD.PROJECTOR_LAYERS else encoder.feature_dim


def _build_contrastive(
    cfg: CfgNode, encoder: Encoder, videos: VideoList, world: World, **extra: Any
) -> Method:
    name, options = cfg.METHOD.NAME, cfg.FALSE_NEGATIVES
    if name == "supcon":
        require_labels(videos, "METHOD.NAME supcon")
    head = _build_projector(cfg, encoder)
    if name in ADVERSARIAL_CONTRASTIVE:
        extra |= contrastive_options(cfg, encoder, videos, world)
    if name in _KEYED or options.JUDGE == "momentum":
        extra["teacher"] = _build_teacher(cfg, encoder, head)
    return CONTRASTIVE[name](
        encoder,
        head,
        loss=build_loss(cfg),
        detector=build_detector(cfg, videos, world, dim=_embedding_dim(cfg, encoder)),
        treatment=build_treatment(cfg),
        aggregate=None if options.AGGREGATE == "auto" else options.AGGREGATE,
        judge=options.JUDGE,
        voters=options.VOTERS,
        classes=len(videos.classes),
        world=world,
        **extra,
    )


def _build_moco_v2(cfg: CfgNode, encoder: Encoder, videos: VideoList, world: World) -> Method:
    queue = KeyQueue(length=cfg.METHOD.QUEUE, dim=_embedding_dim(cfg, encoder))
    return _build_contrastive(cfg, encoder, videos, world, queue=queue)


def _build_moco_v3(cfg: CfgNode, encoder: Encoder, videos: VideoList, world: World) -> Method:
    predictor = _build_predictor(cfg, _embedding_dim(cfg, encoder))
    return _build_contrastive(cfg, encoder, videos, world, predictor=predictor)


def _build_byol(cfg: CfgNode, encoder: Encoder, _videos: VideoList, world: World) -> Method:
    head = _build_projector(cfg, encoder)
    return BYOL(
        encoder,
        head,
        predictor=_build_predictor(cfg, _embedding_dim(cfg, encoder)),
        teacher=_build_teacher(cfg, encoder, head),
        world=world,
    )


def _build_swav(cfg: CfgNode, encoder: Encoder, _videos: VideoList, world: World) -> Method:
    return SwAV(
        encoder,
        _build_projector(cfg, encoder),
        dim=_embedding_dim(cfg, encoder),
        prototypes=cfg.METHOD.PROTOTYPES,
        temperature=cfg.METHOD.TEMPERATURE,
        sharpness=cfg.METHOD.CODE_SHARPNESS,
        frozen=cfg.METHOD.FROZEN_EPOCHS / cfg.TRAIN.EPOCHS,
        world=world,
    )


def _build_supervised(cfg: CfgNode, encoder: Encoder, videos: VideoList, world: World) -> Method:
    require_labels(videos, "METHOD.NAME supervised")
    return Supervised(
        encoder,
        feature_dim=encoder.feature_dim,
        classes=len(videos.classes),
        label_smoothing=cfg.TRAIN.LABEL_SMOOTHING,
        world=world,
    )


_SINGLE = ("supervised", "deacl", *ADVERSARIAL_SUPERVISED)  # compare no clips of a video
_KEYED = ("moco_v2", "moco_v3")  # need a momentum encoder in any case
_BUILDERS: dict[str, Callable[[CfgNode, Encoder, VideoList, World], Method]] = {
    "simclr": _build_contrastive,
    "supcon": _build_contrastive,
    "moco_v2": _build_moco_v2,
    "moco_v3": _build_moco_v3,
    "byol": _build_byol,
    "swav": _build_swav,
    "supervised": _build_supervised,
    **dict.fromkeys(ADVERSARIAL_CONTRASTIVE, _build_contrastive),
    "deacl": build_deacl,
    **dict.fromkeys(ADVERSARIAL_SUPERVISED, build_adversarial_classifier),
}
