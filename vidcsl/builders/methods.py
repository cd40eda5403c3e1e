"""Encoder, heads and objective."""

import torch
from fvcore.common.config import CfgNode

from vidcsl.builders.losses import build_loss
from vidcsl.data.lists import VideoList
from vidcsl.engine.distributed import World
from vidcsl.errors import UserError
from vidcsl.models import ENCODERS, Encoder
from vidcsl.models.heads import projector
from vidcsl.objectives import CONTRASTIVE, Method
from vidcsl.objectives.false_negatives import DETECTORS, TREATMENTS
from vidcsl.objectives.supervised import Supervised
from vidcsl.seeding import seed_of


def build_encoder(cfg: CfgNode) -> Encoder:
    """An encoder with fresh weights that depend on the seed alone."""
    with torch.random.fork_rng():
        torch.manual_seed(seed_of(cfg.SEED, "encoder"))
        return ENCODERS[cfg.MODEL.NAME](
            clip_frames=cfg.DATA.FRAMES, frame_size=cfg.MODEL.FRAME_SIZE, width=cfg.MODEL.WIDTH
        )


def build_method(cfg: CfgNode, videos: VideoList, world: World) -> Method:
    """Encoder, heads and loss, on the world's device.

    Raises:
        UserError: the method needs labels or views that the data do not give.
    """
    encoder = build_encoder(cfg)
    encoder.chunk = cfg.TRAIN.CHUNK * cfg.DATA.CLIPS
    with torch.random.fork_rng():
        torch.manual_seed(seed_of(cfg.SEED, "heads"))
        method = _METHODS[cfg.METHOD.NAME](cfg, encoder, videos, world)
    return method.to(world.device)


def _build_contrastive(cfg: CfgNode, encoder: Encoder, videos: VideoList, world: World) -> Method:
    name, detector = cfg.METHOD.NAME, cfg.FALSE_NEGATIVES.DETECTOR
    if cfg.DATA.CLIPS < 2:
        raise UserError(f"METHOD.NAME {name} needs DATA.CLIPS of at least 2")
    if name == "supcon" or detector == "labels":
        _require_labels(videos, f"METHOD.NAME {name} with FALSE_NEGATIVES.DETECTOR {detector}")
    if detector == "known_groups" and all(video.group < 0 for video in videos.videos):
        raise UserError(
            f"FALSE_NEGATIVES.DETECTOR known_groups needs the group column of {videos.source}"
        )
    options = cfg.FALSE_NEGATIVES
    return CONTRASTIVE[name](
        encoder,
        projector(
            in_dim=encoder.feature_dim,
            hidden_dim=cfg.METHOD.PROJECTOR_HIDDEN,
            out_dim=cfg.METHOD.PROJECTOR_DIM,
            layers=cfg.METHOD.PROJECTOR_LAYERS,
        ),
        loss=build_loss(cfg),
        detector=DETECTORS[detector](
            ceiling=options.CEILING,
            start=options.START,
            ramp=options.RAMP,
            aggregate=options.AGGREGATE,
        ),
        treatment=TREATMENTS[options.TREATMENT],
        world=world,
    )


def _build_supervised(cfg: CfgNode, encoder: Encoder, videos: VideoList, _world: World) -> Method:
    _require_labels(videos, "METHOD.NAME supervised")
    return Supervised(
        encoder,
        feature_dim=encoder.feature_dim,
        classes=len(videos.classes),
        label_smoothing=cfg.TRAIN.LABEL_SMOOTHING,
    )


_METHODS = {**dict.fromkeys(CONTRASTIVE, _build_contrastive), "supervised": _build_supervised}


def _require_labels(videos: VideoList, who: str) -> None:
    unlabelled = sum(video.label < 0 for video in videos.videos)
    if unlabelled:
        raise UserError(f"{who} needs labels; {unlabelled} videos of {videos.source} have none")
