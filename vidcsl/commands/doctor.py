"""`vidcsl doctor`: what this installation has and lacks, and whether a run's lists are sound."""

import argparse
from pathlib import Path

import torch
from fvcore.common.config import CfgNode

from vidcsl.commands.arguments import add_config
from vidcsl.config import load_config
from vidcsl.doctor import Finding, examine, examine_lists, examine_storage, report
from vidcsl.errors import UserError
from vidcsl.pipelines.training import output_dir

HELP = "list versions, readers, codecs, devices and storage, and check the lists of a config"
PREFETCHED = 2  # batches that a worker holds


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """A config, which need not be given."""
    add_config(parser, required=False)


def run(args: argparse.Namespace) -> None:
    """Print what was found; UserError where something is broken."""
    if args.cfg:
        cfg = load_config(args.cfg, args.overrides)
        findings = [*examine(), *_of_config(cfg)]
    else:
        findings = [*examine(), *examine_storage(Path("runs"))]
    print(report(findings))
    broken = [finding.name for finding in findings if finding.broken and not finding.there]
    if broken:
        raise UserError(f"broken: {', '.join(broken)}")


def _of_config(cfg: CfgNode) -> list[Finding]:
    storage = examine_storage(output_dir(cfg), batches=_shared_bytes(cfg))
    if cfg.SYNTHETIC.ENABLED:
        return list(storage)  # what is not rendered yet cannot be looked at
    lists = examine_lists(
        root=cfg.DATA.ROOT,
        train=cfg.DATA.TRAIN_LIST,
        test=cfg.DATA.TEST_LIST,
        reader=cfg.DATA.READER,
        tolerated=cfg.DATA.DAMAGED_LIMIT,
        tolerated_test=float(cfg.DATA.ALLOW_DAMAGED_TEST),
    )
    return [*storage, *lists]


def _shared_bytes(cfg: CfgNode) -> int:
    """Most that the loaders of this machine hold, one process a GPU, for frames of 16:9."""
    processes = max(1, torch.cuda.device_count())
    whole = cfg.DATA.SHORT_SIDE**2 * 16 // 9
    fed = cfg.MODEL.FRAME_SIZE**2 if cfg.AUGMENT.CROP_BY == "decoder" else whole
    trained = -(-cfg.TRAIN.BATCH // processes) * (cfg.DATA.CLIPS + cfg.FALSE_NEGATIVES.VOTERS) * fed
    views = max(cfg.EVALUATE.TRAIN_VIEWS, cfg.EVALUATE.TEST_VIEWS)
    tested = cfg.DATA.TEST_LIST or cfg.SYNTHETIC.ENABLED
    judged = cfg.EVALUATE.BATCH * views * whole if tested else 0
    batches = processes * cfg.DATA.WORKERS * PREFETCHED
    return int(batches * max(trained, judged) * 3 * cfg.DATA.FRAMES)
