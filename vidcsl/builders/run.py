"""The run itself: where it is written, what it computes in, and its mistakes found early."""

from pathlib import Path

from fvcore.common.config import CfgNode

from vidcsl.builders.attacks import build_attack_runs
from vidcsl.builders.augment import build_augmentation, build_crop
from vidcsl.builders.corruptions import build_corruptions
from vidcsl.builders.data import check_lists
from vidcsl.builders.engine import build_strategy
from vidcsl.builders.log import check_trackers
from vidcsl.builders.methods import check_method
from vidcsl.builders.models import check_norms
from vidcsl.builders.robust import check_robust
from vidcsl.builders.targets import check_targets
from vidcsl.builders.training import check_optimiser


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
