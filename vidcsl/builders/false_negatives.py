"""Detectors and treatments of false negatives."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from fvcore.common.config import CfgNode

from vidcsl.config import overridden
from vidcsl.data.lists import VideoList
from vidcsl.engine.distributed import World
from vidcsl.errors import UserError
from vidcsl.objectives.false_negatives import DETECTORS, TREATMENTS, Detector, Treatment


def build_treatment(cfg: CfgNode) -> Treatment:
    """What is done with the flagged pairs."""
    options = cfg.FALSE_NEGATIVES
    return TREATMENTS[options.TREATMENT](weight=options.WEIGHT)


def build_detector(cfg: CfgNode, videos: VideoList, world: World, *, dim: int) -> Detector:
    """A detector for embeddings of length `dim` of the videos of a training list.

    Raises:
        UserError: it needs labels, groups or more videos than the list gives.
    """
    name = cfg.FALSE_NEGATIVES.DETECTOR
    if name in _NEEDS:
        _NEEDS[name](cfg, videos)
    options = _OPTIONS[name](cfg) if name in _OPTIONS else {}
    if name in _STATEFUL:
        options |= {"videos": len(videos), "world": world}
    if name in _EMBEDDED:
        options["dim"] = dim
    return DETECTORS[name](**options)


def require_labels(videos: VideoList, who: str, *, advice: str = "") -> None:
    """Raise a UserError where a video has no label; `advice` says what to do about it."""
    unlabelled = sum(video.label < 0 for video in videos.videos)
    if unlabelled:
        missing = f"{unlabelled} videos of {videos.source} have none"
        raise UserError(f"{who} needs labels; {missing}{advice}")


def _require_groups(_cfg: CfgNode, videos: VideoList) -> None:
    groupless = sum(video.group < 0 for video in videos.videos)
    if groupless:
        raise UserError(
            f"FALSE_NEGATIVES.DETECTOR known_groups needs the group of every video; {groupless} "
            f"videos of {videos.source} have none: fill its group column or take another detector"
        )


def require_clusters(key: str, counts: Sequence[int], videos: VideoList) -> None:
    """Raise a UserError where the counts, option `key`, are no hierarchy of these videos."""
    falling = all(more > less for more, less in pairwise(counts))
    if not counts or min(counts) < 2 or not falling or counts[0] >= len(videos):
        raise UserError(
            f"{key} {counts} must be falling numbers of clusters, from 2 on and fewer than the "
            f"{len(videos)} videos of {videos.source}"
        )


def earlier_rounds(cfg: CfgNode) -> CfgNode:
    """The config of the rounds before the last."""
    method = cfg.FALSE_NEGATIVES.ROUNDS_METHOD or cfg.METHOD.NAME
    return overridden(cfg, {"METHOD.NAME": method, "FALSE_NEGATIVES.ROUNDS_METHOD": ""})


def _require_videos(cfg: CfgNode, videos: VideoList) -> None:
    require_clusters("FALSE_NEGATIVES.CLUSTERS", cfg.FALSE_NEGATIVES.CLUSTERS, videos)


_NEEDS: dict[str, Callable[[CfgNode, VideoList], None]] = {
    "labels": lambda _, videos: require_labels(videos, "FALSE_NEGATIVES.DETECTOR labels"),
    "known_groups": _require_groups,
    "clusters": _require_videos,
}
_OPTIONS: dict[str, Callable[[CfgNode], dict[str, Any]]] = {
    "labels": lambda cfg: {
        "recall": cfg.FALSE_NEGATIVES.ORACLE_RECALL,
        "precision": cfg.FALSE_NEGATIVES.ORACLE_PRECISION,
        "seed": cfg.SEED,
    },
    "adaptive": lambda cfg: {
        "ceiling": cfg.FALSE_NEGATIVES.CEILING,
        "start": cfg.FALSE_NEGATIVES.START,
        "ramp": cfg.FALSE_NEGATIVES.RAMP,
    },
    "fnc": lambda cfg: {
        "count": cfg.FALSE_NEGATIVES.NEAREST,
        "threshold": cfg.FALSE_NEGATIVES.THRESHOLD,
        "start": cfg.FALSE_NEGATIVES.START,
    },
    "clusters": lambda cfg: {
        "clusters": tuple(cfg.FALSE_NEGATIVES.CLUSTERS),
        "epochs": cfg.TRAIN.EPOCHS,
        "accepted": cfg.FALSE_NEGATIVES.ACCEPTED,
        "start": cfg.FALSE_NEGATIVES.START,
        "ramp": cfg.FALSE_NEGATIVES.RAMP,
        "seed": cfg.SEED,
    },
    "memory": lambda cfg: {
        "told": cfg.FALSE_NEGATIVES.ROUNDS > 1 or bool(cfg.FALSE_NEGATIVES.TUTOR),
        "ceiling": cfg.FALSE_NEGATIVES.CEILING,
        "start": cfg.FALSE_NEGATIVES.START,
        "ramp": cfg.FALSE_NEGATIVES.RAMP,
    },
    "glofnd": lambda cfg: {
        "share": cfg.FALSE_NEGATIVES.CEILING,
        "start": cfg.FALSE_NEGATIVES.START,
        "learning_rate": cfg.FALSE_NEGATIVES.THRESHOLD_LR,
    },
}
_STATEFUL = ("clusters", "glofnd", "memory")  # remember something of each video
_EMBEDDED = ("clusters", "memory")  # namely its embedding
